//! A zip archive that is written from front to back: nothing before it is touched again, nothing is kept but a line an entry.
//!
//! APPNOTE.TXT 6.3.10 (<https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT>): sizes and checksum follow an entry in its data
//! descriptor (§4.3.9); an entry that may grow beyond 4 GiB says so beforehand by its zip64 field (§4.5.3), and the
//! directory has its zip64 end where it must (§4.3.14).

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

use super::Unwritable;

/// Beyond this a number needs 64 bits.
const FULL: u64 = 0xFFFF_FFFF;

/// Room that the compressor is given at a time.
const ROOM: usize = 64 * 1024;

/// How much an entry may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// Less than 4 GiB, which the caller sees to; every reader reads it.
    Small,
    /// Anything.
    Any,
}

/// Writes an archive.
pub(super) struct Archive {
    entries: Vec<Entry>,
    open: Option<Open>,
    /// Bytes of the archive written so far.
    written: u64,
}

struct Entry {
    name: String,
    offset: u64,
    crc: u32,
    packed: u64,
    plain: u64,
}

struct Open {
    name: String,
    offset: u64,
    size: Size,
    compress: Compress,
    crc: Crc,
    packed: u64,
    plain: u64,
}

/// Names are UTF-8, sizes follow (§4.4.4).
const FLAGS: u16 = 1 << 11 | 1 << 3;
const DEFLATED: u16 = 8;
/// 1980-01-01, the beginning of zip's time: the archive is the same whenever it is made (§4.4.6).
const TIME_AND_DATE: [u8; 4] = [0, 0, 0x21, 0];

impl Archive {
    pub(super) const fn new() -> Self {
        Self { entries: Vec::new(), open: None, written: 0 }
    }

    /// Begins an entry, after the one before was ended.
    pub(super) fn begin(&mut self, name: &str, size: Size, out: &mut Vec<u8>) {
        let from = out.len();
        let (version, unknown): (u16, u32) = if size == Size::Any { (45, u32::MAX) } else { (20, 0) };
        out.extend_from_slice(b"PK\x03\x04");
        for number in [version, FLAGS, DEFLATED] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&TIME_AND_DATE);
        out.extend_from_slice(&0_u32.to_le_bytes());
        out.extend_from_slice(&unknown.to_le_bytes());
        out.extend_from_slice(&unknown.to_le_bytes());
        out.extend_from_slice(&length(name).to_le_bytes());
        let extra: &[u8] = if size == Size::Any { &[1, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] } else { &[] };
        out.extend_from_slice(&(u16::try_from(extra.len()).unwrap_or_default()).to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(extra);
        let offset = self.written;
        self.written += (out.len() - from) as u64;
        let compress = Compress::new(Compression::fast(), false);
        self.open = Some(Open { name: name.to_owned(), offset, size, compress, crc: Crc::new(), packed: 0, plain: 0 });
    }

    /// Adds to the open entry.
    pub(super) fn write(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Unwritable> {
        let Some(open) = &mut self.open else { return Err(Unwritable::Compression) };
        open.crc.update(bytes);
        open.plain += bytes.len() as u64;
        let packed = open.pack(bytes, FlushCompress::None, out)?;
        self.written += packed;
        Ok(())
    }

    /// Ends the open entry.
    pub(super) fn end(&mut self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        let Some(mut open) = self.open.take() else { return Err(Unwritable::Compression) };
        self.written += open.pack(&[], FlushCompress::Finish, out)?;
        let from = out.len();
        let crc = open.crc.sum();
        out.extend_from_slice(b"PK\x07\x08");
        out.extend_from_slice(&crc.to_le_bytes());
        for number in [open.packed, open.plain] {
            match open.size {
                Size::Any => out.extend_from_slice(&number.to_le_bytes()),
                Size::Small => out.extend_from_slice(&low(number).to_le_bytes()),
            }
        }
        self.written += (out.len() - from) as u64;
        self.entries.push(Entry { name: open.name, offset: open.offset, crc, packed: open.packed, plain: open.plain });
        Ok(())
    }

    /// Writes the directory.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        let (begin, from) = (self.written, out.len());
        for entry in &self.entries {
            entry.list(out);
        }
        let (count, size) = (self.entries.len() as u64, (out.len() - from) as u64);
        if count >= 0xFFFF || begin >= FULL || size >= FULL {
            out.extend_from_slice(b"PK\x06\x06");
            out.extend_from_slice(&44_u64.to_le_bytes());
            out.extend_from_slice(&[45, 3, 45, 0]);
            out.extend_from_slice(&[0; 8]);
            for number in [count, count, size, begin] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(b"PK\x06\x07");
            out.extend_from_slice(&0_u32.to_le_bytes());
            out.extend_from_slice(&(begin + size).to_le_bytes());
            out.extend_from_slice(&1_u32.to_le_bytes());
        }
        out.extend_from_slice(b"PK\x05\x06");
        out.extend_from_slice(&[0; 4]);
        let listed = u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes();
        out.extend_from_slice(&listed);
        out.extend_from_slice(&listed);
        out.extend_from_slice(&low(size).to_le_bytes());
        out.extend_from_slice(&low(begin).to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        self.written += (out.len() - from) as u64;
    }
}

impl Open {
    /// Compresses; answers how many bytes that made.
    fn pack(&mut self, mut bytes: &[u8], flush: FlushCompress, out: &mut Vec<u8>) -> Result<u64, Unwritable> {
        let from = out.len();
        loop {
            out.reserve(ROOM);
            let before = self.compress.total_in();
            let status = self.compress.compress_vec(bytes, out, flush).map_err(|_| Unwritable::Compression)?;
            let taken = usize::try_from(self.compress.total_in() - before).unwrap_or(usize::MAX);
            bytes = bytes.get(taken..).unwrap_or_default();
            let done = match flush {
                FlushCompress::Finish => status == Status::StreamEnd,
                _ => bytes.is_empty(),
            };
            if done {
                break;
            }
        }
        let packed = (out.len() - from) as u64;
        self.packed += packed;
        Ok(packed)
    }
}

impl Entry {
    /// Its line in the directory (§4.3.12).
    fn list(&self, out: &mut Vec<u8>) {
        let mut extra = Vec::new();
        for number in [self.plain, self.packed, self.offset] {
            if number >= FULL {
                extra.extend_from_slice(&number.to_le_bytes());
            }
        }
        out.extend_from_slice(b"PK\x01\x02");
        // Made on Unix (3), so that the permissions below are read.
        out.extend_from_slice(&[45, 3]);
        for number in [if extra.is_empty() { 20 } else { 45 }, FLAGS, DEFLATED] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&TIME_AND_DATE);
        for number in [self.crc, low(self.packed), low(self.plain)] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let extra_length = if extra.is_empty() { 0 } else { extra.len() + 4 };
        for number in [length(&self.name), u16::try_from(extra_length).unwrap_or_default(), 0, 0, 0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&(0o100_644_u32 << 16).to_le_bytes());
        out.extend_from_slice(&low(self.offset).to_le_bytes());
        out.extend_from_slice(self.name.as_bytes());
        if !extra.is_empty() {
            out.extend_from_slice(&1_u16.to_le_bytes());
            out.extend_from_slice(&u16::try_from(extra.len()).unwrap_or_default().to_le_bytes());
            out.extend_from_slice(&extra);
        }
    }
}

/// 32 bits, or the mark that 64 stand elsewhere.
fn low(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Names are a dataset's or our own, so short.
fn length(name: &str) -> u16 {
    u16::try_from(name.len()).unwrap_or(u16::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };

    use super::*;

    /// Runs a Python script over bytes and returns what it says as JSON.
    pub(in super::super) fn python(script: &str, input: &[u8]) -> serde_json::Value {
        let mut child = Command::new("python3").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writing = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        writing.join().unwrap().unwrap();
        assert!(output.status.success());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[test]
    fn another_reader_finds_every_entry_whole() {
        let mut archive = Archive::new();
        let mut file = Vec::new();
        let mut out = Vec::new();
        let long: Vec<u8> = (0..300_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        for (name, size, content) in [("a.csv", Size::Any, &b"one\r\n"[..]), ("Größe.txt", Size::Small, &long), ("empty", Size::Any, b"")]
        {
            archive.begin(name, size, &mut out);
            for piece in content.chunks(100_000) {
                archive.write(piece, &mut out).unwrap();
                // Somebody else empties the buffer.
                file.append(&mut out);
            }
            archive.end(&mut out).unwrap();
        }
        archive.finish(&mut out);
        file.append(&mut out);
        assert_eq!(archive.written, file.len() as u64);
        let script = "import hashlib, io, json, sys, zipfile\n\
            z = zipfile.ZipFile(io.BytesIO(sys.stdin.buffer.read()))\n\
            assert z.testzip() is None\n\
            json.dump([[i.filename, i.file_size, hashlib.sha256(z.read(i)).hexdigest()] for i in z.infolist()], sys.stdout)";
        let digest = |bytes: &[u8]| hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes));
        assert_eq!(
            python(script, &file),
            serde_json::json!([["a.csv", 5, digest(b"one\r\n")], ["Größe.txt", long.len(), digest(&long)], ["empty", 0, digest(b"")]])
        );
    }

    #[test]
    fn large_numbers_stand_in_64_bits() {
        let mut archive = Archive::new();
        archive.written = 5 << 32;
        let mut out = Vec::new();
        archive.begin("a", Size::Any, &mut out);
        archive.write(b"x", &mut out).unwrap();
        archive.end(&mut out).unwrap();
        archive.finish(&mut out);
        // Python takes what precedes an archive for something else and moves its offsets by it: only a reader that
        // knows zip64 finds the entry at all.
        let script = "import io, json, sys, zipfile\n\
            z = zipfile.ZipFile(io.BytesIO(sys.stdin.buffer.read()))\n\
            json.dump([z.namelist(), z.read('a').decode()], sys.stdout)";
        assert!(out.windows(4).any(|window| window == b"PK\x06\x06"));
        assert_eq!(python(script, &out), serde_json::json!([["a"], "x"]));
    }
}
