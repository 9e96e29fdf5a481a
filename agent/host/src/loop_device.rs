//! The kernel's requests to loop devices (`linux/loop.h`), and nothing else that is unsafe.
//!
//! Comes in: open files. Goes out: what the kernel answered.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use linux_raw_sys::loop_device as raw;
pub(crate) use linux_raw_sys::loop_device::loop_info64 as LoopStatus;

/// What a loop device is set to: nothing is written through it, it goes with its last user, and it reads past the page cache.
pub(crate) const READ_ONLY_DIRECT: u32 =
    raw::LO_FLAGS_READ_ONLY as u32 | raw::LO_FLAGS_AUTOCLEAR as u32 | raw::LO_FLAGS_DIRECT_IO as u32;

#[allow(unsafe_code)]
mod ioctl {
    use linux_raw_sys::loop_device::{
        LOOP_CONFIGURE, LOOP_CTL_GET_FREE, LOOP_GET_STATUS64, loop_config, loop_info64,
    };
    nix::ioctl_read_bad!(get_status, LOOP_GET_STATUS64, loop_info64);
    nix::ioctl_write_ptr_bad!(configure, LOOP_CONFIGURE, loop_config);
    nix::ioctl_none_bad!(get_free, LOOP_CTL_GET_FREE);
}

/// How a loop device is set up.
///
/// # Errors
/// What the operating system said: ENXIO where the device has no backing file.
#[allow(unsafe_code)]
pub(crate) fn status(device: &File) -> io::Result<LoopStatus> {
    // SAFETY: all zero is a valid `loop_info64`: it holds integers and arrays of integers only.
    let mut status: LoopStatus = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open for the whole call, and the request writes one `loop_info64`, which is
    // what the pointer leads to.
    unsafe { ioctl::get_status(device.as_raw_fd(), &mut status) }?;
    Ok(status)
}

/// The number of a loop device that nobody uses; it is made where there is none. `control` is `/dev/loop-control`.
///
/// # Errors
/// What the operating system said.
#[allow(unsafe_code)]
pub(crate) fn free(control: &File) -> io::Result<i32> {
    // SAFETY: the descriptor is open for the whole call, and the request takes no pointer.
    Ok(unsafe { ioctl::get_free(control.as_raw_fd()) }?)
}

/// Sets a loop device up over `backing` with blocks of that size, as [`READ_ONLY_DIRECT`] says.
///
/// # Errors
/// What the operating system said: EBUSY where somebody else has set it up meanwhile.
#[allow(unsafe_code)]
pub(crate) fn configure(device: &File, backing: &File, block_bytes: u32) -> io::Result<()> {
    // SAFETY: all zero is a valid `loop_config`: it holds integers and arrays of integers only.
    let mut config: raw::loop_config = unsafe { std::mem::zeroed() };
    config.fd = backing.as_raw_fd().unsigned_abs();
    config.block_size = block_bytes;
    config.info.lo_flags = READ_ONLY_DIRECT;
    // SAFETY: both descriptors are open for the whole call, and the request reads one `loop_config`, which is what the
    // pointer leads to.
    unsafe { ioctl::configure(device.as_raw_fd(), &config) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!((size_of::<LoopStatus>(), size_of::<raw::loop_config>()), (232, 304));
        assert_eq!(READ_ONLY_DIRECT, 1 | 4 | 16);
    }

    #[test]
    fn what_is_no_loop_device_is_said_to_be_none() {
        let null = File::open("/dev/null").expect("it is everywhere");
        for error in [status(&null).err(), free(&null).err(), configure(&null, &null, 512).err()] {
            assert_eq!(error.and_then(|error| error.raw_os_error()), Some(libc::ENOTTY));
        }
    }
}
