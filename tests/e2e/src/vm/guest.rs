//! The guest: a boot sector that writes numbered records to its own disk.
//!
//! In: whose records they are to be, and where on the disk they go. Out: the sector, and where a record lies. What always
//! holds: a run's records carry its nonce, so those of an older run never pass for them; the guest stops when there is no
//! room for more, so no place is written twice but by a repeated write of the same record.

/// Bytes of a record.
pub const RECORD_BYTES: u64 = 4096;
/// 32-bit words of a record before its filling.
pub(super) const HEADER_WORDS: usize = 8;
/// Records that are acknowledged for each dot.
const DOT: u64 = 64;
/// The BIOS counts so, whatever the disk's own blocks are.
const SECTOR_BYTES: u64 = 512;
/// Where `boot.S` has its parameters: nonce, first sector, room.
const PARAMETERS: usize = 480;
/// What `boot.S` is assembled to; a test compares the two.
const PROGRAM: &[u8; 512] = include_bytes!("boot.bin");

/// What a guest writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestProgram {
    /// Whose records they are: another number in each run.
    pub nonce: u32,
    /// Byte of the disk at which the first record lies, a multiple of [`RECORD_BYTES`] and not 0.
    pub first_byte: u32,
    /// Records that there is room for.
    pub room: u32,
}

impl GuestProgram {
    /// One that fills a disk of this size from 32 KiB on.
    #[must_use]
    pub fn filling(nonce: u32, disk_bytes: u64) -> Self {
        let first_byte = 32 << 10;
        let records = disk_bytes.saturating_sub(u64::from(first_byte)) / RECORD_BYTES;
        // A sector's number has 32 bits in the guest.
        let most = (u64::from(u32::MAX) * SECTOR_BYTES - u64::from(first_byte)) / RECORD_BYTES;
        Self { nonce, first_byte, room: u32::try_from(records.min(most)).unwrap_or(u32::MAX) }
    }

    /// The boot sector, for byte 0 of the disk.
    #[must_use]
    pub fn boot_sector(&self) -> [u8; 512] {
        let mut sector = *PROGRAM;
        let first_sector = self.first_byte / SECTOR_BYTES as u32;
        for (index, word) in [self.nonce, first_sector, self.room].into_iter().enumerate() {
            let at = PARAMETERS + 4 * index;
            sector[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        sector
    }

    /// The disk's beginning, so long that it can be written with direct I/O to blocks of any size that a target has.
    #[must_use]
    pub fn first_block(&self) -> Vec<u8> {
        let mut block = self.boot_sector().to_vec();
        block.resize(RECORD_BYTES as usize, 0);
        block
    }
}

/// What the guest has said on its serial port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Said {
    /// It has begun.
    pub began: bool,
    /// So many times 64 records were acknowledged, by this QEMU.
    pub dots: usize,
    /// Writes failed, and were repeated.
    pub failures: usize,
    /// There is no room for more.
    pub full: bool,
}

impl Said {
    /// Reads it.
    #[must_use]
    pub fn of(serial: &[u8]) -> Self {
        let count = |wanted: u8| serial.iter().filter(|byte| **byte == wanted).count();
        Self { began: count(b'B') > 0, dots: count(b'.'), failures: count(b'x'), full: count(b'#') > 0 }
    }

    /// So many records were acknowledged, by this QEMU, and up to 63 more.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.dots as u64 * DOT
    }
}

/// The check word of a record's first seven, as the guest computes it.
pub(super) fn check(words: &[u32; HEADER_WORDS]) -> u32 {
    words[..HEADER_WORDS - 1].iter().fold(0, |sum: u32, word| sum.rotate_left(5).wrapping_add(*word))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;

    #[test]
    fn the_sector_boots_and_carries_what_it_is_given() {
        let program = GuestProgram { nonce: 0x0102_0304, first_byte: 32 << 10, room: 7 };
        let sector = program.boot_sector();
        assert_eq!(sector[510..], [0x55, 0xaa]);
        assert_eq!(sector[480..492], [4, 3, 2, 1, 64, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(sector[..480], PROGRAM[..480]);
        assert_eq!(program.first_block().len(), 4096);
    }

    #[test]
    fn there_is_room_for_what_the_disk_holds_and_no_more() {
        assert_eq!(GuestProgram::filling(1, (32 << 10) + 3 * 4096 + 4095).room, 3);
        assert_eq!(GuestProgram::filling(1, 0).room, 0);
        let last = GuestProgram::filling(1, u64::MAX);
        let end = u64::from(last.first_byte) + u64::from(last.room) * RECORD_BYTES;
        assert!(end / SECTOR_BYTES <= u64::from(u32::MAX));
    }

    #[test]
    fn what_it_says_is_counted() {
        assert_eq!(Said::of(b"B..x."), Said { began: true, dots: 3, failures: 1, full: false });
        assert_eq!(Said::of(b"B..x.").acknowledged(), 192);
        assert_eq!(Said::of(b"#"), Said { began: false, dots: 0, failures: 0, full: true });
    }

    #[test]
    fn the_bytes_are_what_the_source_assembles_to() {
        let folder = tempfile::tempdir().expect("a folder");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/vm/boot.S");
        let (object, binary) = (folder.path().join("boot.o"), folder.path().join("boot.bin"));
        let ran = |command: &mut Command| {
            let output = command.output().expect("binutils; hack/setup installs them");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        ran(Command::new("as").arg("--32").arg("-o").arg(&object).arg(&source));
        ran(Command::new("ld")
            .args(["-m", "elf_i386", "-Ttext", "0x7c00", "-e", "begin", "--oformat", "binary", "-o"])
            .arg(&binary)
            .arg(&object));
        assert_eq!(std::fs::read(&binary).expect("what ld wrote"), PROGRAM, "boot.S and boot.bin differ");
    }
}
