#![allow(clippy::unwrap_used)]

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::grpc::{Keepalive, server};
use crate::unix::UnixIncoming;

const SETTINGS: u8 = 4;
const DATA: u8 = 0;
const RESET: u8 = 3;
const GO_AWAY: u8 = 7;
const END_STREAM: u8 = 1;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A literal that goes into the table, with its name spelled out.
fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![0x40, u8::try_from(name.len()).unwrap()];
    field.extend(name.as_bytes());
    field.push(u8::try_from(value.len()).unwrap());
    field.extend(value.as_bytes());
    field
}

/// The fields of a gRPC request that are not about the authority: POST, http, path, content-type, te.
fn request() -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    block.extend(literal(":path", "/grpc.health.v1.Health/Check"));
    block
}

fn rest_of_request() -> Vec<u8> {
    [literal("content-type", "application/grpc"), literal("te", "trailers")].concat()
}

/// A gRPC message without a field.
const EMPTY: &[u8] = &[0, 0, 0, 0, 0];

struct Client {
    stream: UnixStream,
}

impl Client {
    async fn ask(&mut self, stream: u32, block: &[u8]) {
        self.stream.write_all(&frame(HEADERS, END_HEADERS, stream, block)).await.unwrap();
        self.stream.write_all(&frame(DATA, END_STREAM, stream, EMPTY)).await.unwrap();
    }

    /// Whether the request on this stream is answered, and not refused by the HTTP/2 layer.
    async fn is_answered(&mut self, stream: u32) -> bool {
        loop {
            let mut head = [0; FRAME_HEADER_BYTES];
            let reading = tokio::time::timeout(Duration::from_secs(20), self.stream.read_exact(&mut head));
            if reading.await.expect("an answer in time").is_err() {
                return false;
            }
            let length = usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).unwrap();
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload).await.unwrap();
            let about = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            match head[3] {
                HEADERS if about == stream => return true,
                RESET if about == stream => return false,
                GO_AWAY => return false,
                _ => {}
            }
        }
    }
}

async fn served() -> (Client, tempfile::TempDir, tokio_util::sync::DropGuard) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("csi.sock");
    let incoming = UnixIncoming::bind(&path).await.unwrap();
    let stop = CancellationToken::new();
    let (_, health) = tonic_health::server::health_reporter();
    let server = server(Keepalive::default()).add_service(health);
    tokio::spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    (Client { stream }, dir, stop.drop_guard())
}

#[tokio::test]
async fn a_client_that_sends_the_sockets_path_as_authority_is_answered() {
    let (mut client, _dir, _stop) = served().await;
    let path = "%2Fcsi%2Fcsi.sock";
    // As python's grpcio does it; then by the entry of the table that this made (62 is the newest), by its name
    // alone, and by the static table.
    let spelled = [request(), literal(":authority", path), rest_of_request()].concat();
    client.ask(1, &spelled).await;
    assert!(client.is_answered(1).await);
    // The table now, from the newest on: te, content-type, authority, path.
    let (te, kind, authority, called) = (0x80 | 62, 0x80 | 63, 0x80 | 64, 0x80 | 65);
    client.ask(3, &[0x83, 0x86, called, authority, kind, te]).await;
    assert!(client.is_answered(3).await);
    // A literal that stays out of the table, its name taken from it: 15 and 49 more are 64.
    let by_name = [&[0x83, 0x86, called, 0x0f, 49, 3][..], b"a%b", &[kind, te]].concat();
    client.ask(5, &by_name).await;
    assert!(client.is_answered(5).await);
    let by_static_name = [&[0x83, 0x86, called, 0x01, 3][..], b"a b", &[kind, te]].concat();
    client.ask(7, &by_static_name).await;
    assert!(client.is_answered(7).await);
    client.ask(9, &[0x83, 0x86, called, 0x81, kind, te]).await;
    assert!(client.is_answered(9).await, "an empty one");
}

#[tokio::test]
async fn a_block_in_padded_pieces_is_put_together() {
    let (mut client, _dir, _stop) = served().await;
    let block = [request(), literal(":authority", "/run/csi.sock"), rest_of_request()].concat();
    let (first, second) = block.split_at(41);
    let padded = [&[3][..], &[0, 0, 0, 0, 7], first, &[0, 0, 0]].concat();
    client.stream.write_all(&frame(HEADERS, PADDED | PRIORITY, 1, &padded)).await.unwrap();
    for byte in frame(CONTINUATION, END_HEADERS, 1, second) {
        client.stream.write_all(&[byte]).await.unwrap();
    }
    client.stream.write_all(&frame(DATA, END_STREAM, 1, EMPTY)).await.unwrap();
    assert!(client.is_answered(1).await);
}

#[test]
fn what_is_not_http2_passes_as_it_is() {
    let (mut rewriter, mut out) = (Rewriter::default(), VecDeque::new());
    for piece in [&b"PRI * "[..], b"GET / HTTP/1.1\r\n\r\n"] {
        rewriter.take(piece, &mut out).unwrap();
    }
    assert_eq!(out, b"PRI * GET / HTTP/1.1\r\n\r\n");
}

#[test]
fn a_block_that_is_cut_off_is_an_error() {
    for block in [&[0x40][..], &[0x41, 5, b'a'], &[0xff], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]] {
        assert!(Names::default().rewrite(block).is_err(), "{block:?}");
    }
    assert_eq!(Names::default().rewrite(&[0x41, 3, b'a', b'%', b'b']).unwrap(), [0x41, 1, b'u']);
    let huffman = [&[0x40, 0x88][..], AUTHORITY_HUFFMAN, &[1, b'%']].concat();
    assert_eq!(*Names::default().rewrite(&huffman).unwrap().last().unwrap(), b'u');
}
