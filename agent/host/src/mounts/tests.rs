//! Looking and refusing; and, where this is root, mounting in a namespace of one's own. Publishing a volume is shown in
//! a machine.

use std::io::Write;
use std::os::unix::fs::symlink;

use super::*;

const LONG: Duration = Duration::from_secs(20);

fn mounts() -> Mounts {
    Mounts::new(Workers::new(), "/")
}

fn dev() -> DevT {
    DevT { major: 259, minor: 1 }
}

#[tokio::test]
async fn each_kind_of_target_is_recognised() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("empty"), "").expect("written");
    std::fs::write(at("full"), "x").expect("written");
    symlink(at("empty"), at("link")).expect("linked");
    for (path, expected) in [
        (at("missing"), "nothing"),
        (at("missing/below"), "nothing"),
        (at("empty"), "an empty file"),
        (at("full"), "a regular file of 1 bytes (not a mount)"),
        (at("link"), "a symbolic link"),
        (dir.path().to_owned(), "a directory"),
        (PathBuf::from("/proc"), "a mount with a directory"),
    ] {
        let state = mounts().state(&path, LONG).await.expect("can be looked at");
        assert_eq!(state.to_string(), expected, "{}", path.display());
    }
}

#[tokio::test]
async fn only_what_is_empty_and_not_mounted_is_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let (file, full, sub) = (dir.path().join("file"), dir.path().join("full"), dir.path().join("sub"));
    std::fs::write(&file, "").expect("written");
    std::fs::write(&full, "data").expect("written");
    std::fs::create_dir(&sub).expect("made");
    std::fs::write(sub.join("inside"), "data").expect("written");
    mounts().release_device(&file, None, LONG).await.expect("an empty file goes");
    mounts().release_device(&file, None, LONG).await.expect("and again");
    let kept = mounts().release_device(&full, None, LONG).await.expect_err("data stays");
    assert!(matches!(kept, MountError::Occupied { .. }), "{kept}");
    let kept = mounts().release_device(&sub, None, LONG).await.expect_err("a directory is no device");
    assert!(matches!(kept, MountError::Occupied { .. }), "{kept}");
    let kept = mounts().remove_directory(&sub, LONG).await.expect_err("not empty");
    assert!(matches!(kept, MountError::Call { call: "rmdir", .. }), "{kept}");
    assert_eq!(std::fs::read_to_string(sub.join("inside")).ok().as_deref(), Some("data"));
    std::fs::remove_file(sub.join("inside")).expect("removed");
    mounts().remove_directory(&sub, LONG).await.expect("empty now");
    assert!(!file.exists() && full.exists() && !sub.exists());
}

#[tokio::test]
async fn what_is_mounted_is_never_removed() {
    let error = mounts().remove_directory(Path::new("/proc"), LONG).await.expect_err("mounted");
    assert!(error.to_string().contains("a mount with a directory"), "{error}");
}

#[tokio::test]
async fn a_node_that_is_not_the_device_is_not_published() {
    let dir = tempfile::tempdir().expect("a directory");
    let (node, target) = (dir.path().join("node"), dir.path().join("target"));
    std::fs::write(&node, "").expect("written");
    let error = mounts().bind_device(&node, dev(), &target, false, LONG).await.expect_err("no device");
    assert!(matches!(error, MountError::Node { .. }), "{error}");
    assert!(!target.exists(), "nothing is made for it");
}

#[tokio::test]
async fn a_target_outside_the_kubelets_directory_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let (kubelet, outside) = (dir.path().join("kubelet"), dir.path().join("outside"));
    std::fs::create_dir(&kubelet).expect("made");
    std::fs::write(&outside, "").expect("written");
    let mounts = Mounts::new(Workers::new(), &kubelet);
    for target in [outside.clone(), kubelet.clone(), kubelet.join("../outside")] {
        let error = mounts.release_device(&target, None, LONG).await.expect_err("outside");
        assert!(matches!(error, MountError::Outside { .. }), "{error}");
        assert!(error.to_string().contains("--kubelet-dir"), "{error}");
    }
    assert!(outside.exists());
}

#[tokio::test]
async fn no_link_below_the_kubelets_directory_is_followed() {
    let dir = tempfile::tempdir().expect("a directory");
    let (kubelet, outside) = (dir.path().join("kubelet"), dir.path().join("outside"));
    std::fs::create_dir(&kubelet).expect("made");
    std::fs::create_dir(&outside).expect("made");
    std::fs::write(outside.join("file"), "").expect("written");
    symlink(&outside, kubelet.join("pod")).expect("linked");
    // Also one that leads to a place inside.
    symlink(".", kubelet.join("same")).expect("linked");
    std::fs::write(kubelet.join("file"), "").expect("written");
    let mounts = Mounts::new(Workers::new(), &kubelet);
    for target in ["pod/file", "same/file"] {
        let target = kubelet.join(target);
        mounts.state(&target, LONG).await.expect_err("a link in the way");
        mounts.release_device(&target, None, LONG).await.expect_err("a link in the way");
    }
    assert!(outside.join("file").exists() && kubelet.join("file").exists());
    // What lies above is the operator's word.
    symlink(&kubelet, dir.path().join("link")).expect("linked");
    let mounts = Mounts::new(Workers::new(), dir.path().join("link"));
    mounts.release_device(&dir.path().join("link/file"), None, LONG).await.expect("an empty file goes");
    assert!(!kubelet.join("file").exists());
}

/// Runs on a thread with mounts of its own, with a node of a device at `node`; nothing is shared with the machine.
/// Only root can.
fn apart(check: impl AsyncFnOnce(&Path) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        let _ = writeln!(io::stderr(), "NOT RUN: only root can mount");
        return;
    }
    let run = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("mounts of one's own");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private");
        let dir = tempfile::tempdir().expect("a directory");
        nix::mount::mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .expect("tmpfs");
        let (kind, mode) = (nix::sys::stat::SFlag::S_IFBLK, nix::sys::stat::Mode::S_IRUSR);
        nix::sys::stat::mknod(&dir.path().join("node"), kind, mode, nix::sys::stat::makedev(259, 1))
            .expect("a node");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(check(dir.path()));
        nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).expect("unmounted");
    };
    std::thread::spawn(run).join().expect("the check");
}

#[test]
fn a_device_is_bound_and_released_with_all_that_was_made_for_it() {
    apart(async |dir: &Path| {
        let (node, target) = (dir.join("node"), dir.join("pods/target"));
        std::fs::create_dir(dir.join("pods")).expect("made");
        // The machine's own view is this thread's.
        let mounts = Mounts { init: "/proc/thread-self".into(), ..Mounts::new(Workers::new(), dir) };
        for read_only in [false, true] {
            for _again in 0..2 {
                mounts.bind_device(&node, dev(), &target, read_only, LONG).await.expect("bound");
            }
            let state = mounts.state(&target, LONG).await.expect("looked at");
            assert_eq!(state, TargetState::Device(dev()));
            assert_eq!(mounts.is_read_only(&target, LONG).await.expect("looked at"), read_only);
            mounts.release_device(&target, None, LONG).await.expect("released");
            assert!(!target.exists());
        }
        let (kind, mode) = (nix::sys::stat::SFlag::S_IFBLK, nix::sys::stat::Mode::S_IRUSR);
        nix::sys::stat::mknod(&target, kind, mode, nix::sys::stat::makedev(259, 1)).expect("a node");
        assert_eq!(mounts.state(&target, LONG).await.expect("looked at"), TargetState::Node(dev()));
        mounts.release_device(&target, None, LONG).await.expect("a node that is left goes");
        assert!(!target.exists());
    });
}

#[test]
fn a_mount_that_the_machine_does_not_see_is_no_success_and_is_taken_off() {
    apart(async |dir: &Path| {
        let (node, target) = (dir.join("node"), dir.join("target"));
        let mounts = Mounts { init: "/proc/self".into(), ..Mounts::new(Workers::new(), dir) };
        let error = mounts.bind_device(&node, dev(), &target, false, LONG).await.expect_err("unseen");
        assert!(matches!(error, MountError::Unseen { .. }), "{error}");
        assert!(error.to_string().contains("Bidirectional"), "{error}");
        assert_eq!(mounts.state(&target, LONG).await.expect("looked at"), TargetState::EmptyFile);
    });
}
