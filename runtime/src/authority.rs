//! Lets an HTTP/2 client on a Unix socket call the server by any name.
//!
//! On a Unix socket `:authority` means nothing, and clients put anything there, such as the socket's path,
//! percent-encoded. The HTTP/2 library refuses a client's request whose `:authority` is no host name, so
//! [`AnyAuthority`] replaces it before the library reads it.
//!
//! Comes in: a connection's bytes. Goes out: the same bytes, with the value of `:authority` in header blocks
//! replaced.
//!
//! Always holds: nothing else changes. Both sides keep the same table of the header compression, because a
//! value in the table is only ever replaced by one that is not longer (RFC 7541, section 4: entries are
//! counted from the newest, and shorter ones are evicted later). What is not HTTP/2 passes unchanged.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// What a client begins an HTTP/2 connection with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER_BYTES: usize = 9;
/// The largest frame before a server has asked for larger ones (RFC 9113, section 4.2). Ours never does.
const FRAME_BYTES_MAX: usize = 16_384;
/// The largest header block that is read; the HTTP/2 library refuses smaller ones already.
const BLOCK_BYTES_MAX: usize = 1 << 20;
const DATA_CHUNK: usize = 16 << 10;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// `:authority` in the static table (RFC 7541, appendix A), which ends at 61.
const AUTHORITY_INDEX: u64 = 1;
const STATIC_ENTRIES: u64 = 61;
const AUTHORITY: &[u8] = b":authority";
/// The same as Huffman codes (RFC 7541, appendix B).
const AUTHORITY_HUFFMAN: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];
/// The replacement: one byte, so that it is not longer than any other value.
const NAME: &[u8] = b"u";
/// A table of 4096 bytes has at most this many entries of at least 32.
const ENTRIES_MAX: usize = 128;
/// A string that is sent with this many bytes is never too large for the table, however it is encoded.
const SURELY_FITS_BYTES: usize = 1024;

/// A connection whose client may call the server by any name.
#[derive(Debug)]
pub struct AnyAuthority<S> {
    inner: S,
    rewriter: Rewriter,
    ready: VecDeque<u8>,
}

impl<S> AnyAuthority<S> {
    /// Wraps a connection from which nothing has been read yet.
    pub fn new(inner: S) -> Self {
        Self { inner, rewriter: Rewriter::default(), ready: VecDeque::new() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AnyAuthority<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.ready.is_empty() {
            let mut chunk = [0; DATA_CHUNK];
            let mut read = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.rewriter.take(read.filled(), &mut this.ready)?;
        }
        let (first, _) = this.ready.as_slices();
        let length = first.len().min(to.remaining());
        to.put_slice(first.get(..length).unwrap_or_default());
        this.ready.drain(..length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: Connected> Connected for AnyAuthority<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.inner.connect_info()
    }
}

/// How far the reading of a connection has come.
#[derive(Debug, Default)]
struct Rewriter {
    at: At,
    /// Bytes that were received but are not a whole frame yet.
    pending: Vec<u8>,
    /// An unfinished header block: the first frame's flags and stream, its priority fields, and the block.
    block: Option<Block>,
    names: Names,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Preface,
    Frame,
    /// This many bytes belong to a frame that is not read.
    Through(usize),
    /// It is not HTTP/2.
    Foreign,
}

#[derive(Debug)]
struct Block {
    flags: u8,
    stream: [u8; 4],
    priority: Vec<u8>,
    fragment: Vec<u8>,
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("HTTP/2: {what}"))
}

impl Rewriter {
    fn take(&mut self, bytes: &[u8], out: &mut VecDeque<u8>) -> io::Result<()> {
        self.pending.extend_from_slice(bytes);
        let mut taken = 0;
        while let Some(used) = self.step(taken, out)? {
            taken += used;
        }
        self.pending.drain(..taken);
        Ok(())
    }

    /// Processes the next piece, if it is whole; returns how many bytes it had.
    fn step(&mut self, from: usize, out: &mut VecDeque<u8>) -> io::Result<Option<usize>> {
        let rest = self.pending.get(from..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(None);
        }
        match self.at {
            At::Foreign => {
                out.extend(rest);
                Ok(Some(rest.len()))
            }
            At::Preface => {
                let length = rest.len().min(PREFACE.len());
                if !PREFACE.starts_with(&rest[..length]) {
                    self.at = At::Foreign;
                } else if length == PREFACE.len() {
                    out.extend(PREFACE);
                    self.at = At::Frame;
                    return Ok(Some(length));
                } else {
                    return Ok(None);
                }
                Ok(Some(0))
            }
            At::Through(left) => {
                let length = rest.len().min(left);
                out.extend(&rest[..length]);
                self.at = if length == left { At::Frame } else { At::Through(left - length) };
                Ok(Some(length))
            }
            At::Frame => self.frame(from, out),
        }
    }

    fn frame(&mut self, from: usize, out: &mut VecDeque<u8>) -> io::Result<Option<usize>> {
        let rest = self.pending.get(from..).unwrap_or_default();
        let Some(([l0, l1, l2, kind, flags, s0, s1, s2, s3], payload)) =
            rest.split_first_chunk::<FRAME_HEADER_BYTES>()
        else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes([0, *l0, *l1, *l2])).unwrap_or(usize::MAX);
        if !matches!(*kind, HEADERS | CONTINUATION) {
            out.extend(&rest[..FRAME_HEADER_BYTES]);
            self.at = if length == 0 { At::Frame } else { At::Through(length) };
            return Ok(Some(FRAME_HEADER_BYTES));
        }
        if length > BLOCK_BYTES_MAX {
            return Err(broken("a header frame is too large"));
        }
        let Some(payload) = payload.get(..length) else { return Ok(None) };
        let flags = *flags;
        if *kind == HEADERS {
            let (priority, fragment) = unpadded(flags, payload)?;
            let stream = [*s0, *s1, *s2, *s3];
            let (priority, fragment) = (priority.to_vec(), fragment.to_vec());
            self.block = Some(Block { flags, stream, priority, fragment });
        } else {
            let block = self.block.as_mut().ok_or_else(|| broken("a continuation of nothing"))?;
            block.fragment.extend_from_slice(payload);
            if block.fragment.len() > BLOCK_BYTES_MAX {
                return Err(broken("a header block is too large"));
            }
        }
        if flags & END_HEADERS != 0
            && let Some(block) = self.block.take()
        {
            let rewritten = self.names.rewrite(&block.fragment)?;
            write_block(&block, &rewritten, out);
        }
        Ok(Some(FRAME_HEADER_BYTES + length))
    }
}

/// The priority fields and the fragment of a HEADERS frame (RFC 9113, section 6.2).
fn unpadded(flags: u8, payload: &[u8]) -> io::Result<(&[u8], &[u8])> {
    let short = || broken("a header frame is too short");
    let (padding, rest) = match flags & PADDED {
        0 => (0, payload),
        _ => payload.split_first().map(|(length, rest)| (usize::from(*length), rest)).ok_or_else(short)?,
    };
    let rest = rest.get(..rest.len().checked_sub(padding).ok_or_else(short)?).ok_or_else(short)?;
    rest.split_at_checked(if flags & PRIORITY == 0 { 0 } else { 5 }).ok_or_else(short)
}

fn write_block(block: &Block, fragment: &[u8], out: &mut VecDeque<u8>) {
    let first = FRAME_BYTES_MAX - block.priority.len();
    let (head, mut tail) = fragment.split_at(fragment.len().min(first));
    let mut frame = |kind, flags: u8, parts: [&[u8]; 2]| {
        let length = u32::try_from(parts[0].len() + parts[1].len()).unwrap_or(u32::MAX);
        out.extend(&length.to_be_bytes()[1..]);
        out.extend([kind, flags]);
        out.extend(block.stream);
        parts.iter().for_each(|part| out.extend(*part));
    };
    let end = |tail: &[u8]| if tail.is_empty() { END_HEADERS } else { 0 };
    let kept = block.flags & !(PADDED | END_HEADERS);
    frame(HEADERS, kept | end(tail), [&block.priority, head]);
    while !tail.is_empty() {
        let (next, rest) = tail.split_at(tail.len().min(FRAME_BYTES_MAX));
        tail = rest;
        frame(CONTINUATION, end(tail), [next, &[]]);
    }
}

/// Which entries of the client's dynamic table are named `:authority`, newest first. `None` once nobody can
/// tell.
#[derive(Debug)]
struct Names(Option<VecDeque<bool>>);

impl Default for Names {
    fn default() -> Self {
        Self(Some(VecDeque::new()))
    }
}

impl Names {
    /// The header block with every `:authority` replaced (RFC 7541, section 6).
    fn rewrite(&mut self, block: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(block.len());
        let mut rest = block;
        while let Some(&first) = rest.first() {
            let field = rest;
            if first & 0x80 != 0 {
                let (index, after) = integer(field, 7)?;
                rest = after;
                if index == AUTHORITY_INDEX {
                    // The entry of the static table is empty.
                    out.extend([0x01, 0x01]);
                    out.extend_from_slice(NAME);
                } else {
                    out.extend_from_slice(between(field, rest));
                }
            } else if first & 0xe0 == 0x20 {
                (_, rest) = integer(field, 5)?;
                out.extend_from_slice(between(field, rest));
            } else {
                let kept = first & 0x40 != 0;
                let (index, after) = integer(field, if kept { 6 } else { 4 })?;
                let (name, after) = if index == 0 { string(after)? } else { (&[][..], after) };
                let named = between(field, after);
                let (value, after) = string(after)?;
                rest = after;
                let authority = self.is_authority(index, name);
                if kept {
                    self.add(authority, name.len().max(value.len()));
                }
                let replace =
                    authority && if kept { (1..=SURELY_FITS_BYTES).contains(&value.len()) } else { true };
                if replace {
                    out.extend_from_slice(named);
                    out.push(0x01);
                    out.extend_from_slice(NAME);
                } else {
                    out.extend_from_slice(between(field, rest));
                }
            }
        }
        Ok(out)
    }

    fn is_authority(&self, index: u64, name: &[u8]) -> bool {
        if index <= STATIC_ENTRIES {
            return index == AUTHORITY_INDEX
                || (index == 0 && (name == AUTHORITY || name == AUTHORITY_HUFFMAN));
        }
        let place = usize::try_from(index - STATIC_ENTRIES - 1).ok();
        place.and_then(|place| self.0.as_ref()?.get(place).copied()).unwrap_or(false)
    }

    fn add(&mut self, authority: bool, longest: usize) {
        // An entry that does not fit empties the table instead (RFC 7541, section 4.4).
        if longest > SURELY_FITS_BYTES {
            self.0 = None;
        }
        if let Some(names) = &mut self.0 {
            names.push_front(authority);
            names.truncate(ENTRIES_MAX);
        }
    }
}

/// The bytes of `whole` before `rest`.
fn between<'a>(whole: &'a [u8], rest: &[u8]) -> &'a [u8] {
    whole.get(..whole.len() - rest.len()).unwrap_or_default()
}

/// An integer whose first byte has `bits` bits of it (RFC 7541, section 5.1), and what follows.
fn integer(bytes: &[u8], bits: u32) -> io::Result<(u64, &[u8])> {
    let cut = || broken("a header block is cut off");
    let (first, mut rest) = bytes.split_first().ok_or_else(cut)?;
    let mask = (1_u8 << bits) - 1;
    let mut value = u64::from(first & mask);
    if first & mask != mask {
        return Ok((value, rest));
    }
    for shift in [0, 7, 14, 21, 28] {
        let (next, after) = rest.split_first().ok_or_else(cut)?;
        rest = after;
        value += u64::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Ok((value, rest));
        }
    }
    Err(broken("a number in a header block is too large"))
}

/// A string as it was sent, without its length (RFC 7541, section 5.2), and what follows.
fn string(bytes: &[u8]) -> io::Result<(&[u8], &[u8])> {
    let (length, rest) = integer(bytes, 7)?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    rest.split_at_checked(length).ok_or_else(|| broken("a header block is cut off"))
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
