//! Flow control: bodies far beyond the windows arrive whole, nobody buffers them, and windows that were
//! used come back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use remora_tests::{
    mesh::Pair,
    origin::{Answer, BodyError, Origin, Speaks, empty, full, h2 as client},
    streams::{self, App},
    wait::{eventually, within},
};

const CHUNK: usize = 64 * 1024;

/// What the counter stands at once it stands still.
async fn settled(counter: &AtomicUsize) -> usize {
    let mut last = usize::MAX;
    eventually("the sender to be held back", async || {
        let now = counter.load(Ordering::SeqCst);
        if now > 0 && now == last {
            return Some(now);
        }
        last = now;
        tokio::time::sleep(Duration::from_millis(150)).await;
        None
    })
    .await
}

#[tokio::test]
async fn an_answer_far_beyond_the_windows_arrives_whole_and_a_slow_reader_holds_it_back() {
    const CHUNKS: usize = 160;
    let pair = Pair::start(&[]).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, move |_| {
        let counter = Arc::clone(&counter);
        let chunks = stream::iter(0..CHUNKS).map(move |n| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok::<_, BodyError>(Frame::data(Bytes::from(vec![n as u8; CHUNK])))
        });
        async move { Response::new(StreamBody::new(chunks).boxed_unsync()) }
    })
    .await;
    let mut sender = streams::connect(pair.entry()).await;
    let request = Request::get("http://orders/").body(()).unwrap();
    let response = within("a head", streams::ask(&mut sender, request)).await.unwrap();
    // Nothing is read yet. The client's own window is one chunk, that of a hop between or behind proxies
    // four; each of the three senders has a little in hand.
    let held = settled(&sent).await;
    assert!(held <= 16, "{held} chunks of 64 KiB are on the way");
    let (body, _) = streams::read(&mut response.into_body()).await.unwrap();
    assert_eq!(body.len(), CHUNK * CHUNKS);
    assert!(body.iter().enumerate().all(|(at, byte)| *byte == (at / CHUNK) as u8));
}

#[tokio::test]
async fn an_upload_far_beyond_the_windows_arrives_whole() {
    let pair = Pair::start(&[]).await;
    let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, |request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
        Response::new(full(format!("{} {sum}", body.len())))
    })
    .await;
    let data: Vec<u8> = (0..5_000_000u32).map(|n| (n >> 3) as u8).collect();
    let sum: u64 = data.iter().map(|byte| u64::from(*byte)).sum();
    let expected = format!("{} {sum}", data.len());
    let mut sender = client(pair.entry()).await;
    let request = Request::post("http://orders/").body(full(data)).unwrap();
    let response = within("an answer", sender.send_request(request)).await.unwrap();
    assert_eq!(Answer::read(response).await.unwrap().text, expected);
}

#[tokio::test]
async fn an_application_that_does_not_read_holds_the_upload_back() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let request = Request::post("http://orders/").body(()).unwrap();
    let mut sent = streams::open(&mut sender, request);
    let (taken, total) = (Arc::new(AtomicUsize::new(0)), 160 * CHUNK);
    let counter = Arc::clone(&taken);
    let upload = tokio::spawn(async move {
        let mut left = total;
        while left > 0 {
            sent.body.reserve_capacity(CHUNK.min(left));
            let room = std::future::poll_fn(|cx| sent.body.poll_capacity(cx)).await;
            let room = room.unwrap().unwrap().min(left);
            left -= room;
            sent.body.send_data(vec![7; room].into(), left == 0).unwrap();
            counter.fetch_add(room, Ordering::SeqCst);
        }
        sent.answer.await
    });
    let mut call = app.call().await;
    let held = settled(&taken).await;
    assert!(held <= 16 * CHUNK, "{held} bytes are on the way");
    let (body, _) = streams::read(call.request.body_mut()).await.unwrap();
    assert!(body.len() == total && body.iter().all(|byte| *byte == 7));
    call.answer(Response::new(()));
    assert_eq!(within("an answer", upload).await.unwrap().unwrap().status(), 200);
}

/// `SETTINGS_INITIAL_WINDOW_SIZE` 1 at the client: each byte waits for the one before.
#[tokio::test]
async fn a_client_with_a_window_of_one_byte_gets_all_of_its_answer() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender =
        streams::dial(pair.entry(), h2::client::Builder::new().initial_window_size(1)).await;
    let request = Request::get("http://orders/").body(()).unwrap();
    let answer = streams::ask(&mut sender, request);
    let text: Vec<u8> = (0..500u32).map(|n| n as u8).collect();
    let mut body = app.call().await.begin(Response::new(()));
    body.send_data(text.clone().into(), false).unwrap();
    body.send_trailers(http::HeaderMap::from_iter([("x-sum".parse().unwrap(), 7.into())])).unwrap();
    let mut answer = within("a head", answer).await.unwrap().into_body();
    let mut got = Vec::new();
    while let Some(chunk) = within("a byte", answer.data()).await {
        let chunk = chunk.unwrap();
        assert!(chunk.len() <= 1, "more than the window");
        answer.flow_control().release_capacity(chunk.len()).unwrap();
        got.extend_from_slice(&chunk);
    }
    assert!(got == text);
    assert_eq!(within("trailers", answer.trailers()).await.unwrap().unwrap()["x-sum"], "7");
}

/// The same at the application.
#[tokio::test]
async fn an_application_with_a_window_of_one_byte_gets_all_of_the_request() {
    let pair = Pair::start(&[]).await;
    let mut settings = h2::server::Builder::new();
    settings.initial_window_size(1);
    let mut app = App::listen_with(pair.server.pod.app(), settings).await;
    let mut sender = client(pair.entry()).await;
    // Until the window has been heard of, the protocol's own of 64 KiB holds.
    let first = sender.send_request(Request::get("http://orders/").body(empty()).unwrap());
    let first = tokio::spawn(first);
    app.call().await.answer(Response::new(()));
    assert_eq!(within("an answer", first).await.unwrap().unwrap().status(), 200);
    let text: Vec<u8> = (0..500u32).map(|n| n as u8).collect();
    let request = Request::post("http://orders/").body(full(text.clone())).unwrap();
    let call = tokio::spawn(async move { sender.send_request(request).await });
    let mut asked = app.call().await;
    let mut got = Vec::new();
    while let Some(chunk) = within("a byte", asked.request.body_mut().data()).await {
        let chunk = chunk.unwrap();
        assert!(chunk.len() <= 1, "more than the window");
        asked.request.body_mut().flow_control().release_capacity(chunk.len()).unwrap();
        got.extend_from_slice(&chunk);
    }
    assert!(got == text);
    asked.answer(Response::new(()));
    assert_eq!(within("an answer", call).await.unwrap().unwrap().status(), 200);
}

/// A client that lets no byte through holds up its own stream, and not the connection that others share.
#[tokio::test]
async fn a_stream_whose_window_is_shut_does_not_hold_up_the_others() {
    let pair = Pair::start(&[]).await;
    let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, |_| async {
        Response::new(full(vec![7; 2 * CHUNK]))
    })
    .await;
    let mut shut = Vec::new();
    for _ in 0..8 {
        let mut sender =
            streams::dial(pair.entry(), h2::client::Builder::new().initial_window_size(0)).await;
        let answer = streams::ask(&mut sender, Request::get("http://orders/").body(()).unwrap());
        shut.push((within("a head", answer).await.unwrap(), sender));
    }
    let mut sender = client(pair.entry()).await;
    let request = Request::get("http://orders/").body(empty()).unwrap();
    let response = within("a head", sender.send_request(request)).await.unwrap();
    assert_eq!(Answer::read(response).await.unwrap().text.len(), 2 * CHUNK);
}

/// The window of the connection between the proxies is 1 MiB up and 2 MiB down. More than that is spent
/// on streams that end early, in every way; if they kept it, the last one would hang.
#[tokio::test]
async fn streams_that_end_early_give_their_windows_back() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let post = || Request::post("http://orders/").body(()).unwrap();
    let chunk = Bytes::from(vec![7; 60_000]);
    for n in 0..80 {
        sender = within("room for a stream", sender.ready()).await.unwrap();
        let mut sent = streams::open(&mut sender, post());
        streams::send(&mut sent.body, chunk.clone(), false).await.unwrap();
        let mut call = app.call().await;
        let mut body = call.begin(Response::new(()));
        body.send_data(chunk.clone(), false).unwrap();
        let answer = within("a head", &mut sent.answer).await.unwrap();
        match n % 4 {
            // The client gives up, with all of its answer unread, or after a part of it.
            0 => drop((answer, sent)),
            1 => {
                streams::chunk(&mut answer.into_body()).await;
                sent.body.send_reset(h2::Reason::CANCEL);
            }
            // The application gives up.
            2 => body.send_reset(h2::Reason::INTERNAL_ERROR),
            _ => drop((body, call)),
        }
    }
    let mut sent = streams::open(&mut sender, post());
    streams::send(&mut sent.body, vec![1; 200_000].into(), true).await.unwrap();
    let mut call = loop {
        let mut call = app.call().await;
        // Those that were given up before anybody looked at them.
        if let Ok((body, _)) = streams::read(call.request.body_mut()).await {
            assert_eq!(body.len(), 200_000);
            break call;
        }
    };
    let mut body = call.begin(Response::new(()));
    let download = async { streams::send(&mut body, vec![2; 200_000].into(), true).await.unwrap() };
    let read = async {
        let answer = within("a head", &mut sent.answer).await.unwrap();
        streams::read(&mut answer.into_body()).await.unwrap().0.len()
    };
    assert_eq!(tokio::join!(download, read).1, 200_000);
}
