use std::{future::poll_fn, time::Duration};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::net::scratch;

fn wires(room: usize) -> (DuplexStream, Wire<DuplexStream>, Wire<DuplexStream>, DuplexStream) {
    let ((source, from), (to, sink)) = (duplex(room), duplex(room));
    (source, Wire::new(from, Vec::new()), Wire::new(to, Vec::new()), sink)
}

async fn run(
    transfer: &mut Transfer,
    from: &mut Wire<DuplexStream>,
    to: &mut Wire<DuplexStream>,
) -> Result<(), Broken> {
    poll_fn(|cx| transfer.poll(cx, from, to)).await
}

#[tokio::test]
async fn a_body_is_moved_up_to_its_end_and_no_further() {
    let (mut source, mut from, mut to, mut sink) = wires(1024);
    source.write_all(b"3\r\nabc\r\n0\r\n\r\nGET /next").await.unwrap();
    let mut transfer = Transfer::new(Framing::Chunked, Encoder::Plain);
    run(&mut transfer, &mut from, &mut to).await.unwrap();
    drop(to);
    let mut got = Vec::new();
    sink.read_to_end(&mut got).await.unwrap();
    assert_eq!((&got[..], from.input(), transfer.moved()), (&b"abc"[..], &b"GET /next"[..], 3));
}

#[tokio::test]
async fn pieces_are_not_held_back_while_the_source_is_silent() {
    let (mut source, mut from, mut to, mut sink) = wires(1024);
    let moving = tokio::spawn(async move {
        let mut transfer = Transfer::new(Framing::Chunked, Encoder::Chunked);
        run(&mut transfer, &mut from, &mut to).await.is_ok()
    });
    for piece in ["1\r\na\r\n", "2\r\nbc\r\n", "0\r\n\r\n"] {
        source.write_all(piece.as_bytes()).await.unwrap();
        let mut got = vec![0; piece.len()];
        sink.read_exact(&mut got).await.unwrap();
        assert_eq!(got, piece.as_bytes());
    }
    assert!(moving.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_stops_the_writer_at_a_bound() {
    for encoder in [Encoder::Plain, Encoder::Chunked] {
        let (mut source, mut from, mut to, mut sink) = wires(1024);
        let total = 1 << 20;
        let moving = tokio::spawn(async move {
            let mut transfer = Transfer::new(Framing::Length(total), encoder);
            run(&mut transfer, &mut from, &mut to).await.is_ok()
        });
        let data = vec![7; 4096];
        let mut taken = 0;
        while let Ok(n) = tokio::time::timeout(Duration::from_secs(1), source.write(&data)).await {
            taken += n.unwrap() as u64;
        }
        assert!(taken <= 2 * scratch::SIZE as u64, "{taken} with {encoder:?}");
        let feeding = tokio::spawn(async move {
            source.write_all(&vec![7; (total - taken) as usize]).await.unwrap();
            source
        });
        let mut got = 0;
        let mut buf = vec![0; 8192];
        while !moving.is_finished() || got < total {
            got += sink.read(&mut buf).await.unwrap() as u64;
        }
        feeding.await.unwrap();
    }
}

#[tokio::test]
async fn an_end_in_the_middle_is_no_end() {
    for framing in [Framing::Length(5), Framing::Chunked] {
        let (mut source, mut from, mut to, _sink) = wires(1024);
        source.write_all(b"3\r\na").await.unwrap();
        drop(source);
        let mut transfer = Transfer::new(framing, Encoder::Chunked);
        let broken = run(&mut transfer, &mut from, &mut to).await.unwrap_err();
        assert!(matches!(broken, Broken::Source(_)), "{broken:?}");
    }
}

#[tokio::test]
async fn what_was_kept_is_replayed_and_the_rest_follows() {
    let (mut source, mut from, mut to, sink) = wires(1024);
    drop(sink);
    source.write_all(b"3\r\nabc\r\n").await.unwrap();
    let mut transfer = Transfer::new(Framing::Chunked, Encoder::Chunked).keeping();
    let broken = run(&mut transfer, &mut from, &mut to).await.unwrap_err();
    assert!(matches!(broken, Broken::Sink(_)), "{broken:?}");
    let (other, mut sink) = duplex(1024);
    let mut other = Wire::new(other, Vec::new());
    transfer.replay(other.output());
    source.write_all(b"2\r\nde\r\n0\r\nX: 1\r\n\r\n").await.unwrap();
    run(&mut transfer, &mut from, &mut other).await.unwrap();
    drop(other);
    let mut got = Vec::new();
    sink.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"3\r\nabc\r\n2\r\nde\r\n0\r\nX: 1\r\n\r\n");
    // And once more from the beginning.
    let mut again = Vec::new();
    transfer.replay(&mut again);
    assert_eq!(again, b"5\r\nabcde\r\n0\r\nX: 1\r\n\r\n");
}

#[tokio::test]
async fn a_body_over_the_cap_streams_on_and_is_not_kept() {
    let (mut source, mut from, mut to, mut sink) = wires(256 * 1024);
    let length = crate::http::MAX_KEPT as u64 + 1;
    source.write_all(&vec![1; length as usize]).await.unwrap();
    let mut transfer = Transfer::new(Framing::Length(length), Encoder::Plain).keeping();
    run(&mut transfer, &mut from, &mut to).await.unwrap();
    assert!(transfer.kept().is_none() && transfer.is_done());
    drop(to);
    let mut got = Vec::new();
    sink.read_to_end(&mut got).await.unwrap();
    assert_eq!(got.len() as u64, length);
}
