//! Users of a device in fixture trees of `/proc` and sysfs. Block devices are files that say so.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use crate::fixtures::{NamespaceSpec, Tree};

pub(super) const HEAD: DevT = DevT { major: 259, minor: 1 };
pub(super) const LONG: Duration = Duration::from_secs(20);
const POD: &str = "3b0c5a0e-6a5f-4f5e-9d3e-0d8a2b8c1f11";

pub(super) struct Host {
    pub(super) tree: Tree,
    pub(super) openers: Openers,
}

/// A block device is a file that begins with `block MAJOR:MINOR`. One that says `silent` does not answer for as long as
/// it says so.
fn told_by_content(path: &Path) -> io::Result<Option<DevT>> {
    let mut text = fs::read_to_string(path)?;
    while text == "silent" {
        std::thread::park_timeout(Duration::from_millis(5));
        text = fs::read_to_string(path)?;
    }
    Ok(text.strip_prefix("block ").and_then(|number| DevT::parse(number.trim()).ok()))
}

impl Host {
    pub(super) fn new() -> Self {
        let tree = Tree::new();
        tree.subsystem(0, "nqn.2026-01.test:v1");
        let uuid = "01234567-89ab-cdef-0123-456789abcdef";
        tree.head(0, &NamespaceSpec { nsid: 1, uuid, dev: "259:1", size_bytes: 4096 }, &[]);
        tree.write("host/dev/nvme0n1", "block 259:1");
        tree.write("host/dev/null", "");
        let at = |name: &str| tree.root().join("host").join(name);
        let mut openers = Openers::at(at("proc"), at("dev"), tree.sysfs(), Workers::new());
        openers.places.rdev = told_by_content;
        openers.places.claim = claim::nobody;
        let host = Self { tree, openers };
        host.link("proc/self/ns/pid", "pid:[4026531836]");
        host.process(1, "init", "mnt:[1]");
        host.tree.write("host/proc/1/mountinfo", "1 0 0:1 / / rw - ext4 /dev/root rw\n");
        host
    }

    pub(super) fn link(&self, link: &str, target: impl AsRef<Path>) {
        let link = self.tree.root().join("host").join(link);
        fs::create_dir_all(link.parent().expect("below the root")).expect("made");
        symlink(target, link).expect("linked");
    }

    pub(super) fn process(&self, pid: u32, comm: &str, namespace: &str) {
        self.tree.write(&format!("host/proc/{pid}/comm"), &format!("{comm}\n"));
        fs::create_dir_all(self.tree.root().join(format!("host/proc/{pid}/fd"))).expect("made");
        self.link(&format!("proc/{pid}/ns/mnt"), namespace);
    }

    pub(super) fn opens(&self, pid: u32, fd: u32, node: &str) {
        self.opens_with(pid, fd, node, "flags:\t0100002\nmnt_id:\t1\n");
    }

    fn opens_with(&self, pid: u32, fd: u32, node: &str, info: &str) {
        self.link(&format!("proc/{pid}/fd/{fd}"), self.tree.root().join("host/dev").join(node));
        self.tree.write(&format!("host/proc/{pid}/fdinfo/{fd}"), info);
    }

    fn maps(&self, pid: u32, node: &str) {
        let line = "00400000-00401000 rw-s 00000000 00:06 323    /dev/nvme0n1\n";
        self.tree.write(&format!("host/proc/{pid}/maps"), line);
        let device = self.tree.root().join("host/dev").join(node);
        self.link(&format!("proc/{pid}/map_files/400000-401000"), device);
    }

    fn look(&self) -> OpenersReport {
        self.openers.look_blocking(HEAD)
    }
}

#[test]
fn a_device_that_nobody_uses_is_free() {
    let report = Host::new().look();
    assert_eq!(report.verdict(), DeviceUse::Free, "{report:?}");
    assert_eq!(report.to_string(), "nobody");
}

#[test]
fn a_process_is_named_with_its_pod() {
    let host = Host::new();
    host.process(4242, "qemu-kvm", "mnt:[1]");
    host.tree.write("host/proc/4242/cgroup", &format!("0::/kubepods/pod{POD}/abc\n"));
    host.opens(4242, 9, "nvme0n1");
    host.opens(4242, 10, "nvme0n1");
    host.opens(4242, 0, "null");
    host.link("proc/4242/fd/3", "socket:[77]");
    let report = host.look();
    let [DeviceUser::Process(process)] = &report.users[..] else { panic!("{report:?}") };
    assert_eq!((process.pid, process.comm.as_str(), process.descriptors), (4242, "qemu-kvm", 2));
    assert_eq!(process.pod_uid.as_deref(), Some(POD));
    assert_eq!(report.verdict(), DeviceUse::InUse);
    assert_eq!(report.to_string(), format!("process 4242 (qemu-kvm) of pod {POD}"));
}

#[test]
fn our_own_process_is_left_out() {
    let host = Host::new();
    let own = std::process::id();
    host.process(own, "cleat-agent", "mnt:[1]");
    host.opens(own, 9, "nvme0n1");
    assert_eq!(host.look().verdict(), DeviceUse::Free);
}

#[test]
fn mounts_and_bound_nodes_are_found_in_every_mount_namespace_once() {
    let host = Host::new();
    host.process(20, "other", "mnt:[2]");
    host.process(21, "other", "mnt:[2]");
    let info = "9 1 259:1 / /data rw - ext4 /dev/nvme0n1 rw\n\
        10 1 0:6 /nvme0n1 /var/lib/kubelet/x rw - devtmpfs udev rw\n\
        11 1 0:6 / /dev rw - devtmpfs udev rw\n";
    for pid in [20, 21] {
        host.tree.write(&format!("host/proc/{pid}/mountinfo"), info);
        host.tree.write(&format!("host/proc/{pid}/root/var/lib/kubelet/x"), "block 259:1");
    }
    let report = host.look();
    assert_eq!(report.users.len(), 2, "{report:?}");
    assert!(matches!(&report.users[0], DeviceUser::Mount { fs_type, .. } if fs_type == "ext4"));
    let DeviceUser::NodeBind { mount_point, seen_by_pid: 20, .. } = &report.users[1] else {
        panic!("{report:?}")
    };
    assert_eq!(mount_point, Path::new("/var/lib/kubelet/x"));
    // Our own bind mounts are expected; the file system is not.
    let own = |user: &DeviceUser| matches!(user, DeviceUser::NodeBind { .. });
    assert_eq!(report.verdict_without(own), DeviceUse::InUse);
}

#[test]
fn what_sits_on_a_holder_uses_the_device_as_well() {
    let host = Host::new();
    host.tree.dm("dm-1", "253:1", "LVM-x", "vg-lv", &["nvme0n1"]);
    host.tree.write("host/proc/1/mountinfo", "9 1 253:1 / /data rw - xfs /dev/mapper/vg-lv rw\n");
    let report = host.look();
    assert!(matches!(&report.users[..], [DeviceUser::Holder(_), DeviceUser::Mount { .. }]), "{report:?}");
}

#[test]
fn a_file_system_with_a_number_of_its_own_is_found_by_its_source() {
    let host = Host::new();
    host.tree.write("host/proc/1/mountinfo", "9 1 0:44 / /data rw - btrfs /dev/nvme0n1 rw\n");
    let report = host.look();
    assert!(
        matches!(&report.users[..], [DeviceUser::Mount { fs_type, .. }] if fs_type == "btrfs"),
        "{report:?}"
    );
    host.tree.write("host/proc/1/mountinfo", "9 1 0:44 / /data rw - btrfs /dev/gone rw\n");
    assert_eq!(host.look().verdict(), DeviceUse::Unknown);
}

#[test]
fn a_partition_in_use_is_a_use_of_the_device() {
    let host = Host::new();
    host.tree.partition("nvme0n1", "nvme0n1p2", "259:2");
    host.tree.write("host/dev/nvme0n1p2", "block 259:2");
    host.process(20, "fsck", "mnt:[1]");
    host.opens(20, 4, "nvme0n1p2");
    host.tree.dm("dm-1", "253:1", "LVM-x", "vg-lv", &["nvme0n1p2"]);
    let report = host.look();
    let kinds = |user: &DeviceUser| match user {
        DeviceUser::Holder(_) => "holder",
        DeviceUser::Process(_) => "process",
        _ => "other",
    };
    assert_eq!(report.users.iter().map(kinds).collect::<Vec<_>>(), ["holder", "process"], "{report:?}");
}

#[tokio::test]
async fn many_looks_at_once_share_scans_and_see_what_was_there_before_them() {
    let host = Host::new();
    host.process(20, "user", "mnt:[1]");
    host.opens(20, 4, "nvme0n1");
    let other = DevT { major: 259, minor: 9 };
    for _ in 0..20 {
        let long = Duration::from_secs(20);
        let (first, second, third) = tokio::join!(
            host.openers.look(HEAD, long),
            host.openers.look(other, long),
            host.openers.look(DevT { major: 8, minor: 0 }, long)
        );
        assert_eq!(first.verdict(), DeviceUse::InUse, "{first:?}");
        assert_eq!((second.verdict(), third.verdict()), (DeviceUse::Free, DeviceUse::Free));
    }
}

#[test]
fn the_kubelets_loop_is_recognised_among_others() {
    let host = Host::new();
    let base = "/plugins/kubernetes.io/csi/volumeDevices/publish/pvc-1";
    let mapped = host.tree.write(&format!("host{base}/{POD}"), "block 259:1");
    let plain = host.tree.write("host/elsewhere", "block 259:1");
    for (name, dev, file) in [("loop0", "7:0", &mapped), ("loop1", "7:1", &plain)] {
        host.tree.write(&format!("class/block/{name}/dev"), dev);
        host.tree.write(&format!("class/block/{name}/loop/backing_file"), &file.display().to_string());
    }
    host.tree.write("class/block/loop2/dev", "7:2");
    let report = host.look();
    let kubelets: Vec<_> = report.users.iter().map(DeviceUser::is_kubelet_loop).collect();
    assert_eq!(kubelets, [true, false], "{report:?}");
    assert_eq!(report.verdict_without(DeviceUser::is_kubelet_loop), DeviceUse::InUse);
    assert!(report.to_string().contains("the kubelet's loop0 for volume pvc-1"), "{report}");
}

#[test]
fn a_tickets_loop_is_named_with_its_ticket_and_does_not_count_as_open() {
    let host = Host::new();
    // The node is gone, as it is while the command runs; the path is that of the host.
    let place = "/run/cleat/tickets/run.1/device (deleted)";
    host.tree.write(&format!("host/proc/1/root{place}"), "block 259:1");
    host.tree.write("class/block/loop0/dev", "7:0");
    host.tree.write("class/block/loop0/loop/backing_file", place);
    host.tree.write("host/dev/loop0", "block 7:0");
    host.process(20, "backup", "mnt:[1]");
    host.opens(20, 4, "loop0");
    let report = host.look();
    assert_eq!(report.to_string(), "loop0 of ticket run.1; process 20 (backup)");
    assert_eq!(report.users[0].ticket_loop(), Some(("run.1", DevT { major: 7, minor: 0 })));
    assert!(!report.is_open_beside_tickets() && !report.users[0].is_kubelet_loop());
    assert_eq!(report.verdict(), DeviceUse::InUse);
    host.opens(20, 5, "nvme0n1");
    assert!(host.look().is_open_beside_tickets());
}

#[tokio::test]
async fn one_look_at_the_loop_devices_serves_whoever_names_a_moment_before_it() {
    let host = Host::new();
    let plain = host.tree.write("host/elsewhere", "block 259:1");
    let add = |name: &str, dev: &str| {
        host.tree.write(&format!("class/block/{name}/dev"), dev);
        host.tree.write(&format!("class/block/{name}/loop/backing_file"), &plain.display().to_string());
    };
    let count = async |since| host.openers.loops(HEAD, since, LONG).await.expect("looked").0.len();
    add("loop0", "7:0");
    let round = Instant::now();
    assert_eq!(count(round).await, 1);
    add("loop1", "7:1");
    assert_eq!(count(round).await, 1, "the look that is there");
    assert_eq!(count(Instant::now()).await, 2);
    assert_eq!(count(round).await, 2, "the last one that there was");
}

#[test]
fn a_loop_whose_backing_file_cannot_be_looked_at_leaves_the_answer_open() {
    let host = Host::new();
    host.tree.write("class/block/loop0/dev", "7:0");
    host.tree.write("class/block/loop0/loop/backing_file", "/gone/away");
    let report = host.look();
    assert_eq!(report.verdict(), DeviceUse::Unknown);
    assert!(report.to_string().contains("/gone/away"), "{report}");
}

#[test]
fn what_could_not_be_looked_at_is_never_none() {
    let blind = |change: &dyn Fn(&Host)| {
        let host = Host::new();
        change(&host);
        let report = host.look();
        assert_eq!(report.verdict(), DeviceUse::Unknown, "{report:?}");
        report.to_string()
    };
    let own = blind(&|host| {
        fs::remove_file(host.tree.root().join("host/proc/self/ns/pid")).expect("removed");
        host.link("proc/self/ns/pid", "pid:[4026532200]");
    });
    assert!(own.contains("hostPID"), "{own}");
    // A file in the place of a directory fails like a directory that may not be read.
    let fds = blind(&|host| {
        fs::remove_dir(host.tree.root().join("host/proc/1/fd")).expect("removed");
        host.tree.write("host/proc/1/fd", "");
    });
    assert!(fds.contains("1/fd"), "{fds}");
    let mounts = blind(&|host| {
        host.tree.write("host/proc/1/mountinfo", "garbage\n");
    });
    assert!(mounts.contains("mountinfo"), "{mounts}");
}

#[test]
fn a_namespace_that_one_process_can_show_is_not_blind_because_of_another() {
    let host = Host::new();
    host.process(20, "a", "mnt:[2]");
    host.process(21, "b", "mnt:[2]");
    host.tree.write("host/proc/20/mountinfo", "garbage\n");
    host.tree.write("host/proc/21/mountinfo", "1 0 0:1 / / rw - ext4 /dev/root rw\n");
    assert_eq!(host.look().verdict(), DeviceUse::Free);
}

#[test]
fn a_process_that_ends_meanwhile_is_no_gap() {
    let host = Host::new();
    fs::create_dir_all(host.tree.root().join("host/proc/30")).expect("made");
    assert_eq!(host.look().verdict(), DeviceUse::Free);
}

#[test]
fn swap_is_a_use() {
    let host = Host::new();
    // The kernel names the node; a name outside /dev (a swap file) is no device.
    host.tree.write("host/proc/swaps", "Filename Type Size Used Priority\n/swapfile file 1 0 -2\n");
    assert_eq!(host.look().verdict(), DeviceUse::Free);
}

#[tokio::test]
async fn a_deadline_is_an_open_answer() {
    let host = Host::new();
    let report = host.openers.look(HEAD, Duration::ZERO).await;
    assert_ne!(report.verdict(), DeviceUse::InUse);
    let free = report.verdict() == DeviceUse::Free;
    let said = |what: &str| report.blind.iter().any(|blind| blind.what.contains(what));
    assert!(free || said("openers") || said("processes") || said("loop devices"), "{report:?}");
}

#[tokio::test]
async fn what_the_kernel_has_claimed_is_named_to_whoever_ends_the_device() {
    let mut host = Host::new();
    host.openers.places.claim = |_, _| Claim::Somebody;
    assert_eq!(host.look().verdict(), DeviceUse::Free, "a look for a report claims nothing");
    let unnamed = host.openers.look_to_end(HEAD, LONG).await;
    assert_eq!(unnamed.verdict(), DeviceUse::InUse);
    assert!(unnamed.to_string().contains("unmounted lazily"), "{unnamed}");
    for (name, said) in [
        ("fs/ext4/nvme0n1/errors_count", "ext4 on nvme0n1"),
        ("fs/btrfs/0a1b/devices/nvme0n1", "btrfs 0a1b on nvme0n1"),
        ("host/proc/fs/jbd2/nvme0n1/info", "an external journal on nvme0n1"),
    ] {
        host.tree.write(name, "");
        let named = host.openers.look_to_end(HEAD, LONG).await;
        assert!(named.to_string().contains(said), "{named}");
    }
}

#[tokio::test]
async fn a_claim_that_cannot_be_tried_leaves_the_answer_open() {
    let mut host = Host::new();
    host.openers.places.claim = claim::ask;
    let report = host.openers.look_to_end(HEAD, LONG).await;
    assert_eq!(report.verdict(), DeviceUse::Unknown, "a file is no device: {report}");
    fs::remove_file(host.tree.root().join("dev/block/259:1")).expect("removed");
    let gone = host.openers.look_to_end(HEAD, LONG).await;
    assert_eq!(gone.verdict(), DeviceUse::Free, "{gone}");
}

#[tokio::test]
async fn a_process_that_closes_the_device_within_half_a_second_is_no_user() {
    let mut host = Host::new();
    host.process(20, "systemd-udevd", "mnt:[1]");
    host.opens(20, 4, "nvme0n1");
    // Once it was looked at, the descriptor is closed.
    host.openers.places.rdev = |path| {
        let device = told_by_content(path);
        if path.ends_with("20/fd/4") {
            fs::remove_file(path)?;
        }
        device
    };
    let report = host.openers.look_to_end(HEAD, LONG).await;
    assert_eq!(report.verdict(), DeviceUse::Free, "{report}");
    host.openers.places.rdev = told_by_content;
    host.opens(20, 4, "nvme0n1");
    let stays = host.openers.look_to_end(HEAD, LONG).await;
    assert_eq!(stays.to_string(), "process 20 (systemd-udevd)");
}

#[test]
fn a_memory_map_without_a_descriptor_is_named_with_its_process() {
    let host = Host::new();
    host.process(31, "database", "mnt:[1]");
    host.maps(31, "nvme0n1");
    let report = host.look();
    assert_eq!(report.to_string(), "process 31 (database) by a memory map", "{report:?}");
}

#[test]
fn what_only_threads_have_open_once_the_first_has_ended_is_found() {
    let host = Host::new();
    host.process(32, "worker", "mnt:[1]");
    host.opens(33, 4, "nvme0n1");
    let of = |pid: u32| host.tree.root().join(format!("host/proc/{pid}"));
    fs::create_dir_all(of(32).join("task/32")).expect("made");
    fs::rename(of(33), of(32).join("task/33")).expect("moved");
    assert_eq!(host.look().to_string(), "process 32 (worker)");
}

#[test]
fn a_descriptor_that_only_names_the_device_is_no_use_of_it() {
    let host = Host::new();
    host.process(20, "stat", "mnt:[1]");
    host.opens_with(20, 4, "nvme0n1", "flags:\t012100000\nmnt_id:\t1\n");
    assert_eq!(host.look().verdict(), DeviceUse::Free);
}

#[tokio::test]
async fn a_silent_server_holds_up_no_look_and_hides_nothing_else() {
    let host = Host::new();
    let silent = host.tree.write("host/dev/on-a-server", "silent");
    let info = "1 0 0:1 / / rw - ext4 /dev/root rw\n42 1 0:50 / /mnt rw - nfs4 server:/x rw\n";
    host.tree.write("host/proc/1/mountinfo", info);
    host.process(20, "reader", "mnt:[1]");
    host.opens_with(20, 4, "on-a-server", "flags:\t0100000\nmnt_id:\t42\n");
    let first = host.openers.look_to_end(HEAD, LONG).await;
    assert_eq!(first.verdict(), DeviceUse::Free, "{first}");
    // Neither does a loop device over a file there.
    host.tree.write("class/block/loop0/dev", "7:0");
    host.tree.write("class/block/loop0/loop/backing_file", &silent.display().to_string());
    let info =
        format!("42 1 0:50 / {} rw - nfs4 server:/x rw\n", silent.parent().expect("a folder").display());
    host.tree.write("host/proc/1/mountinfo", &info);
    let second = host.openers.look_to_end(HEAD, LONG).await;
    assert_eq!(second.verdict(), DeviceUse::Free, "{second}");
    host.process(21, "user", "mnt:[1]");
    host.opens(21, 4, "nvme0n1");
    assert_eq!(host.openers.look_to_end(HEAD, LONG).await.to_string(), "process 21 (user)");
    fs::write(silent, "").expect("the server is back");
}

#[tokio::test]
async fn a_silent_mount_that_nothing_shows_is_named_and_the_look_goes_on() {
    let host = Host::new();
    let silent = host.tree.write("host/dev/somewhere", "silent");
    host.process(20, "reader", "mnt:[1]");
    host.opens_with(20, 4, "somewhere", "flags:\t0100000\nmnt_id:\t99\n");
    for _ in 0..2 {
        let report = host.openers.look_to_end(HEAD, LONG).await;
        assert_eq!(report.verdict(), DeviceUse::Unknown);
        assert!(report.to_string().contains("mount 99"), "{report}");
    }
    fs::write(silent, "").expect("it answers again");
    let deadline = std::time::Instant::now() + LONG;
    while host.openers.look_to_end(HEAD, LONG).await.verdict() != DeviceUse::Free {
        assert!(std::time::Instant::now() < deadline, "it is still taken for silent");
    }
}

#[tokio::test]
async fn unseen_mounts_matter_only_where_no_claim_can_be_tried() {
    let mut host = Host::new();
    host.process(20, "user", "mnt:[2]");
    host.tree.write("host/proc/20/mountinfo", "garbage\n");
    assert_eq!(host.look().verdict(), DeviceUse::Unknown);
    assert_eq!(host.openers.look_to_end(HEAD, LONG).await.verdict(), DeviceUse::Free);
    host.openers.places.claim = |_, _| Claim::Unknown("Input/output error".to_owned());
    assert_eq!(host.openers.look_to_end(HEAD, LONG).await.verdict(), DeviceUse::Unknown);
}

#[test]
fn a_bound_node_behind_a_users_fuse_mount_is_not_walked_to() {
    let host = Host::new();
    host.process(20, "user", "mnt:[2]");
    let info = "8 1 0:60 / /f rw - fuse x rw\n9 8 0:61 /node /f/x rw - tmpfs x rw\n";
    host.tree.write("host/proc/20/mountinfo", info);
    host.tree.write("host/proc/20/root/f/x", "silent");
    let report = host.look();
    assert!(report.to_string().contains("FUSE daemon"), "{report}");
}

#[test]
fn a_process_that_is_forked_while_others_are_looked_at_is_looked_at_too() {
    let mut host = Host::new();
    // Looked at, this file shows the process that came to be meanwhile.
    host.openers.places.rdev = |path| {
        let born = path.ancestors().nth(3).expect("in a process").join("21");
        if path.ends_with("20/fd/4") && !born.exists() {
            fs::rename(born.with_file_name("unborn"), born).expect("born");
        }
        told_by_content(path)
    };
    host.process(20, "parent", "mnt:[1]");
    host.opens(20, 4, "null");
    host.process(21, "child", "mnt:[1]");
    host.opens(21, 4, "nvme0n1");
    let of = |name: &str| host.tree.root().join("host/proc").join(name);
    fs::rename(of("21"), of("unborn")).expect("hidden");
    assert_eq!(host.look().to_string(), "process 21 (child)");
}

#[tokio::test]
async fn a_pod_that_has_a_device_open_that_is_no_more_the_head_is_found() {
    let host = Host::new();
    // The node of its disk has the number that the device had before.
    let stale = DevT { major: 259, minor: 7 };
    host.tree.write("host/dev/disk", "block 259:7");
    for (pid, uid) in [(20, POD), (21, "7c9e6679-7425-40de-944b-e07fc1f90ae7")] {
        host.process(pid, "qemu-kvm", "mnt:[1]");
        host.tree.write(&format!("host/proc/{pid}/cgroup"), &format!("0::/kubepods/pod{uid}/abc\n"));
        host.opens(pid, 9, "disk");
        host.opens(pid, 10, "disk");
    }
    host.process(22, "of no pod", "mnt:[1]");
    host.opens(22, 9, "disk");
    let pods = BTreeSet::from([POD.to_owned()]);
    let look = async || {
        let (held, blind) = host.openers.held_by(&pods, Instant::now(), LONG).await.expect("looked");
        assert!(blind.is_empty(), "{blind:?}");
        (held.len(), held_elsewhere(&held, &pods, HEAD, &BTreeSet::new()))
    };
    let (held, elsewhere) = look().await;
    let [one] = &elsewhere[..] else { panic!("{elsewhere:?}") };
    assert_eq!((held, one.pid, one.comm.as_str(), one.rdev), (1, 20, "qemu-kvm", stale));
    assert!(one.name.ends_with("host/dev/disk"), "{one}");
    assert!(host.look().users.is_empty(), "by the head alone nobody has it");

    fs::remove_file(host.tree.root().join("host/proc/20/fd/10")).expect("closed");
    host.opens(20, 11, "nvme0n1");
    assert_eq!(look().await, (2, Vec::new()), "it has the head as well");
}

#[tokio::test]
async fn what_a_pod_holds_and_could_not_be_read_is_said() {
    let host = Host::new();
    fs::remove_dir(host.tree.root().join("host/proc/1/fd")).expect("removed");
    host.tree.write("host/proc/1/fd", "");
    let (held, blind) = host.openers.held_by(&BTreeSet::new(), Instant::now(), LONG).await.expect("looked");
    assert!(held.is_empty() && blind.iter().any(|blind| blind.what.contains("1/fd")), "{blind:?}");
}
