use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn request(text: &str) -> RequestHead {
    RequestHead::read(text.as_bytes()).unwrap().unwrap().0
}

fn get() -> RequestHead {
    request("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
}

fn post(length: usize) -> RequestHead {
    request(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"))
}

/// A client and a server, and the relay's ends of both.
struct Sides {
    client: DuplexStream,
    down: Wire<DuplexStream>,
    up: Wire<DuplexStream>,
    server: DuplexStream,
}

impl Sides {
    fn new(room: usize) -> Self {
        let ((client, down), (up, server)) = (duplex(room), duplex(room));
        Self { client, down: Wire::new(down, Vec::new()), up: Wire::new(up, Vec::new()), server }
    }

    async fn ask(
        &mut self,
        head: &RequestHead,
        patience: Patience,
    ) -> Result<ResponseHead, NoAnswer> {
        let mut upload = upload(head);
        self.ask_with(head, &mut upload, patience).await
    }

    async fn ask_with(
        &mut self,
        head: &RequestHead,
        upload: &mut Transfer,
        patience: Patience,
    ) -> Result<ResponseHead, NoAnswer> {
        ask((&mut self.down, &mut self.up), (head, b""), upload, patience).await
    }
}

/// Reads so many bytes, within a (paused) day.
async fn read(stream: &mut DuplexStream, n: usize) -> String {
    let mut bytes = vec![0; n];
    tokio::time::timeout(86_400 * SECOND, stream.read_exact(&mut bytes)).await.unwrap().unwrap();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test(start_paused = true)]
async fn patience_with_a_response_begins_at_the_end_of_the_request() {
    let mut sides = Sides::new(1024);
    let head = post(4);
    let patience = Patience { response: Some(2 * SECOND), ..Patience::default() };
    let begun = Instant::now();
    let (mut client, dummy) = duplex(1);
    std::mem::swap(&mut client, &mut sides.client);
    drop(dummy);
    let feeding = tokio::spawn(async move {
        for byte in [b"b", b"o", b"d", b"y"] {
            tokio::time::sleep(3 * SECOND).await;
            client.write_all(byte).await.unwrap();
        }
        client
    });
    let late = sides.ask(&head, patience).await.unwrap_err();
    assert!(matches!(late, NoAnswer::Late(Late::Response)), "{late:?}");
    assert_eq!(begun.elapsed(), 4 * 3 * SECOND + 2 * SECOND);
    feeding.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_bound_that_passes_first_is_the_one_that_is_named() {
    for (attempt, request, expected) in [
        (Some(2), Some(5), Late::Attempt),
        (Some(5), Some(2), Late::Request),
        (None, Some(3), Late::Request),
        (Some(3), Some(3), Late::Request),
    ] {
        let mut sides = Sides::new(1024);
        let at = |seconds: Option<u32>| seconds.map(|s| Instant::now() + s * SECOND);
        let patience =
            Patience { attempt: at(attempt), request: at(request), ..Patience::default() };
        let late = sides.ask(&get(), patience).await.unwrap_err();
        assert!(matches!(late, NoAnswer::Late(late) if late == expected), "{late:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_bounds_a_response_may_take_a_day() {
    let mut sides = Sides::new(1024);
    let head = get();
    let mut server = std::mem::replace(&mut sides.server, duplex(1).0);
    let answering = tokio::spawn(async move {
        tokio::time::sleep(86_400 * SECOND).await;
        server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        server
    });
    assert_eq!(sides.ask(&head, Patience::default()).await.unwrap().status, 200);
    answering.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_pause_in_a_body_is_blamed_on_the_side_that_makes_it() {
    let idle = Patience { idle: Some(SECOND), ..Patience::default() };
    // The client sends nothing.
    let mut sides = Sides::new(1024);
    let late = sides.ask(&post(4), idle).await.unwrap_err();
    assert!(matches!(late, NoAnswer::Late(Late::ClientIdle)), "{late:?}");
    // The server takes nothing.
    let mut sides = Sides::new(64);
    sides.down.keep_input(&[0; 4096]);
    let late = sides.ask(&post(4096), idle).await.unwrap_err();
    assert!(matches!(late, NoAnswer::Late(Late::UpstreamIdle)), "{late:?}");
    // Nobody waits for a body that is complete.
    let mut sides = Sides::new(1024);
    let slow = tokio::time::timeout(100 * SECOND, sides.ask(&get(), idle)).await;
    assert!(slow.is_err(), "{slow:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pause_in_a_response_ends_it_and_a_slow_one_that_moves_goes_on() {
    let idle = Patience { idle: Some(SECOND), ..Patience::default() };
    for (pause, whole) in [(SECOND / 2, true), (2 * SECOND, false)] {
        let mut sides = Sides::new(1024);
        let head = get();
        let mut server = std::mem::replace(&mut sides.server, duplex(1).0);
        tokio::spawn(async move {
            server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n").await.unwrap();
            for _ in 0..4 {
                tokio::time::sleep(pause).await;
                // Nobody reads on after the time-out.
                let _ = server.write_all(b"x").await;
            }
        });
        let mut upload = upload(&head);
        let answered = sides.ask_with(&head, &mut upload, idle).await.unwrap();
        let sides = (&mut sides.down, &mut sides.up);
        match answer(sides, &head, answered, &mut upload, idle, false).await {
            Ending::Complete { client: true, upstream: true } => assert!(whole),
            Ending::Late { late: Late::UpstreamIdle, begun: true } => assert!(!whole),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_was_sent_where_the_connection_took_nothing() {
    let mut sides = Sides::new(1024);
    sides.server = duplex(1).0;
    let broken = sides.ask(&get(), Patience::default()).await.unwrap_err();
    assert!(matches!(broken, NoAnswer::Broken { sent: false, .. }), "{broken:?}");
    let mut sides = Sides::new(16);
    let mut server = std::mem::replace(&mut sides.server, duplex(1).0);
    tokio::spawn(async move {
        let mut byte = [0];
        server.read_exact(&mut byte).await.unwrap();
    });
    let broken = sides.ask(&get(), Patience::default()).await.unwrap_err();
    assert!(matches!(broken, NoAnswer::Broken { sent: true, .. }), "{broken:?}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_came_before_the_connection_broke_is_still_read() {
    let mut sides = Sides::new(64);
    let mut server = std::mem::replace(&mut sides.server, duplex(1).0);
    sides.down.keep_input(&[0; 4096]);
    // Refuses the upload, and closes without having read it.
    server.write_all(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    drop(server);
    assert_eq!(sides.ask(&post(4096), Patience::default()).await.unwrap().status, 413);
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_ends_its_direction_is_gone_and_a_client_is_not() {
    let mut sides = Sides::new(1024);
    sides.client.shutdown().await.unwrap();
    let waiting = tokio::time::timeout(SECOND, sides.ask(&get(), Patience::default())).await;
    assert!(waiting.is_err());
    let (mut client, down) = duplex(1024);
    client.shutdown().await.unwrap();
    sides.down = Wire::new(down, Vec::new()).without_half_close();
    let gone = sides.ask(&get(), Patience::default()).await.unwrap_err();
    assert!(matches!(gone, NoAnswer::ClientGone));
}

#[tokio::test(start_paused = true)]
async fn a_pipelined_request_is_left_for_later() {
    let mut sides = Sides::new(1024);
    let head = get();
    sides.client.write_all(b"GET /next HTTP/1.1\r\n").await.unwrap();
    sides.server.write_all(b"HTTP/1.1 204 No\r\n\r\n").await.unwrap();
    sides.ask(&head, Patience::default()).await.unwrap();
    let mut next = Scan::default();
    let waiting = poll_fn(|cx| sides.down.poll_head(cx, &mut next, true, 1000));
    assert!(tokio::time::timeout(SECOND, waiting).await.is_err());
    assert_eq!(sides.down.input(), b"GET /next HTTP/1.1\r\n");
}

/// An hour in which either side says something every minute, and one of silence.
#[tokio::test(start_paused = true)]
async fn a_websocket_lives_for_hours() {
    let mut sides = Sides::new(1024);
    let head =
        request("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    sides
        .server
        .write_all(
            b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nfirst",
        )
        .await
        .unwrap();
    let answered = sides.ask(&head, Patience::default()).await.unwrap();
    let Sides { mut client, mut down, mut up, mut server } = sides;
    let begun = Instant::now();
    let carrying = tokio::spawn(async move {
        let mut carried = copy::Carried::default();
        let ended = tunnel((&mut down, &mut up), (&head, answered), &mut carried, None).await;
        ended.map(|()| carried)
    });
    let wanted = "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nfirst";
    assert_eq!(read(&mut client, wanted.len()).await, wanted);
    let wanted = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n";
    assert_eq!(read(&mut server, wanted.len()).await, wanted);
    for _ in 0..60 {
        tokio::time::sleep(60 * SECOND).await;
        client.write_all(b"ping").await.unwrap();
        assert_eq!(read(&mut server, 4).await, "ping");
        server.write_all(b"pong").await.unwrap();
        assert_eq!(read(&mut client, 4).await, "pong");
    }
    tokio::time::sleep(3600 * SECOND).await;
    client.write_all(b"bye").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read(&mut server, 3).await, "bye");
    drop(server);
    let carried = carrying.await.unwrap().unwrap();
    assert_eq!((carried.a_to_b, carried.b_to_a), (60 * 4 + 3, 60 * 4 + 5));
    assert_eq!(begun.elapsed(), 7200 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_request_still_arrives_after_an_early_answer() {
    let mut sides = Sides::new(64);
    let head = post(1000);
    sides.down.keep_input(&[b'x'; 1000]);
    let mut server = std::mem::replace(&mut sides.server, duplex(1).0);
    let serving = tokio::spawn(async move {
        server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n").await.unwrap();
        let request = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n".len() + 1000;
        assert!(read(&mut server, request).await.ends_with("xxx"));
        server.write_all(b"ok").await.unwrap();
        server
    });
    let mut upload = upload(&head);
    let answered = sides.ask_with(&head, &mut upload, Patience::default()).await.unwrap();
    let wires = (&mut sides.down, &mut sides.up);
    let ending = answer(wires, &head, answered, &mut upload, Patience::default(), false);
    let ending = tokio::time::timeout(3600 * SECOND, ending).await.unwrap();
    assert!(matches!(ending, Ending::Complete { client: true, upstream: true }), "{ending:?}");
    serving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn http_is_left_only_at_the_end_of_the_request() {
    let mut sides = Sides::new(1024);
    let fields = "Connection: upgrade\r\nUpgrade: chat\r\nTransfer-Encoding: chunked\r\n";
    let head = request(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
    let switch = b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n";
    sides.server.write_all(switch).await.unwrap();
    let mut client = std::mem::replace(&mut sides.client, duplex(1).0);
    let sending = tokio::spawn(async move {
        client.write_all(b"3\r\nab").await.unwrap();
        tokio::time::sleep(SECOND).await;
        client.write_all(b"c\r\n0\r\n\r\nhello").await.unwrap();
        client
    });
    let answered = sides.ask(&head, Patience::default()).await.unwrap();
    assert!(answered.leaves_http);
    assert_eq!(sides.down.input(), b"hello");
    drop(sides.up);
    let mut heard = String::new();
    sides.server.read_to_string(&mut heard).await.unwrap();
    assert!(heard.ends_with("\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"), "{heard:?}");
    sending.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_interim_response_on_its_way_is_not_cut_by_what_comes_instead_of_the_final_one() {
    let (mut client, down) = duplex(8);
    let mut sides = Sides::new(1024);
    sides.down = Wire::new(down, Vec::new());
    let head = get();
    let hints = "HTTP/1.1 103 Hints\r\n\r\n";
    let mut server = std::mem::replace(&mut sides.server, duplex(1).0);
    tokio::spawn(async move {
        server.write_all(hints.as_bytes()).await.unwrap();
        tokio::time::sleep(SECOND).await;
        server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").await.unwrap();
    });
    let mut upload = upload(&head);
    let answered = sides.ask_with(&head, &mut upload, Patience::default()).await.unwrap();
    let wires = (&mut sides.down, &mut sides.up);
    let ending = answer(wires, &head, answered, &mut upload, Patience::default(), false).await;
    assert!(matches!(ending, Ending::Broken { begun: false, .. }), "{ending:?}");
    assert_eq!(read(&mut client, 8).await, hints[..8]);
    poll_fn(|cx| sides.down.poll_write_out(cx)).now_or_never();
    drop(sides.down);
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.unwrap();
    assert!(hints[8..].starts_with(&rest) && !rest.is_empty(), "{rest:?}");
}

#[tokio::test(start_paused = true)]
async fn interim_responses_wait_for_a_client_that_reads_nothing() {
    let mut sides = Sides::new(1024);
    let mut server = std::mem::replace(&mut sides.server, duplex(1).0);
    let hints = format!("HTTP/1.1 103 Hints\r\nLink: {}\r\n\r\n", "a".repeat(40_000));
    let serving = tokio::spawn(async move {
        for _ in 0..10 {
            server.write_all(hints.as_bytes()).await.unwrap();
        }
        server.write_all(b"HTTP/1.1 204 No\r\n\r\n").await.unwrap();
        hints.len()
    });
    let head = get();
    let waiting = tokio::time::timeout(SECOND, sides.ask(&head, Patience::default())).await;
    assert!(waiting.is_err());
    assert!(sides.down.unwritten() < 2 * MAX_HEAD, "{}", sides.down.unwritten());
    serving.abort();
}
