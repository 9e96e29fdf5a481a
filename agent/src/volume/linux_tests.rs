//! What is at a target path, on the file system of this machine. Mounting needs a machine of its own: see the
//! machine tests.

use super::*;

async fn linux() -> Linux {
    let roots = Roots { sysfs: "/nowhere".into(), proc: "/proc".into(), dev: "/dev".into() };
    let sysfs = Sysfs::at(&roots.sysfs);
    Linux::new(Arc::new(fabrics::KernelFabrics::new("/nowhere", sysfs)), &roots, Path::new("/"))
}

#[tokio::test]
async fn files_and_folders_of_others_are_never_ours_to_remove() {
    let dir = tempfile::tempdir().unwrap();
    let linux = linux().await;
    let missing = dir.path().join("a/b");
    assert_eq!(linux.at_target(&missing).await.unwrap(), AtTarget::Nothing);
    linux.unpublish(&missing).await.unwrap();
    let empty = dir.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    assert_eq!(linux.at_target(&empty).await.unwrap(), AtTarget::Placeholder);
    linux.unpublish(&empty).await.unwrap();
    assert!(!empty.exists());
    let full = dir.path().join("full");
    std::fs::write(&full, "keep").unwrap();
    for kept in [full.as_path(), dir.path()] {
        assert!(matches!(linux.at_target(kept).await.unwrap(), AtTarget::Other(_)));
        linux.unpublish(kept).await.unwrap_err();
        assert!(kept.exists());
    }
}

#[tokio::test]
async fn a_link_at_the_target_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("file"), dir.path().join("link"));
    std::fs::write(&file, "").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let linux = linux().await;
    assert!(matches!(linux.at_target(&link).await.unwrap(), AtTarget::Other(_)));
    linux.unpublish(&link).await.unwrap_err();
    assert!(file.exists() && link.exists());
}
