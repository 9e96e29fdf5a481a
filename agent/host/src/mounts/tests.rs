//! What can be shown without a mount: looking, and refusing. Mounting itself needs a device and is shown in
//! a machine.

use super::*;

const LONG: Duration = Duration::from_secs(20);

fn mounts() -> Mounts {
    Mounts::new(Workers::new())
}

fn dev() -> DevT {
    DevT { major: 259, minor: 1 }
}

#[tokio::test]
async fn targets_are_told_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("empty"), "").expect("written");
    std::fs::write(at("full"), "x").expect("written");
    std::os::unix::fs::symlink(at("empty"), at("link")).expect("linked");
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
