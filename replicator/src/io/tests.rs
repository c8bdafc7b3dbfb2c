//! Two nodes on real UDP sockets of this machine.

use super::*;
use bytes::Bytes;
use noq::{Endpoint, EndpointConfig};
use std::net::{Ipv4Addr, UdpSocket};
use tokio::time::timeout;

fn free_port() -> SocketAddr {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

fn options(identity: &Identity, peer: PeerKey, addresses: &[(SocketAddr, SocketAddr)]) -> NodeOptions {
    let links = addresses.iter().enumerate().map(|(index, (local, remote))| LinkOptions {
        name: format!("link{index}"),
        local: *local,
        remote: *remote,
    });
    NodeOptions { identity: identity.clone(), peer, links: links.collect(), session: SessionOptions::default() }
}

fn addresses() -> Vec<(SocketAddr, SocketAddr)> {
    vec![(free_port(), free_port()), (free_port(), free_port())]
}

fn reversed(addresses: &[(SocketAddr, SocketAddr)]) -> Vec<(SocketAddr, SocketAddr)> {
    addresses.iter().map(|(a, b)| (*b, *a)).collect()
}

async fn until(events: &mut mpsc::UnboundedReceiver<Event>, wanted: impl Fn(&Event) -> bool) -> Event {
    let search = async {
        loop {
            let event = events.recv().await.expect("the driver goes on");
            if wanted(&event) {
                return event;
            }
        }
    };
    timeout(Duration::from_secs(60), search).await.expect("the event comes")
}

async fn up(events: &mut mpsc::UnboundedReceiver<Event>) -> SessionName {
    let Event::Up { session } = until(events, |event| matches!(event, Event::Up { .. })).await else { unreachable!() };
    session
}

fn frame(number: u32, size: usize) -> Frame {
    let header = Bytes::copy_from_slice(&number.to_le_bytes());
    Frame { channel: ChannelId([1; 16]), header, payload: vec![number as u8; size].into() }
}

#[tokio::test]
async fn frames_cross_two_real_links_and_are_acknowledged() {
    let (a, b) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let there = addresses();
    let (left, mut left_events) = connect(options(&a, b.public(), &there), 1).unwrap();
    let (right, mut right_events) = connect(options(&b, a.public(), &reversed(&there)), 2).unwrap();
    let session = up(&mut left_events).await;
    assert_eq!(up(&mut right_events).await, session);
    for number in 0..200 {
        left.try_send(session, frame(number, 50_000)).unwrap();
    }
    for number in 0..200 {
        let event = until(&mut right_events, |event| matches!(event, Event::Frame(_))).await;
        let Event::Frame(received) = event else { unreachable!() };
        assert_eq!(received.body[..4], (number as u32).to_le_bytes());
        assert_eq!(received.body.len(), 50_004);
        right.consumed(session, received.body.len() as u64);
    }
    right.mark_durable(session, ChannelId([1; 16]), 200);
    until(&mut left_events, |event| matches!(event, Event::Durable { value: 200, .. })).await;
    assert!(left.status().links.iter().all(|link| link.state == LinkState::Up));
    right.close();
    left.close();
}

/// The upper layers work on what has come in a session that is over, and do not know of the next one yet.
#[tokio::test]
async fn what_belongs_to_a_session_that_is_over_does_not_enter_the_next() {
    let (a, b) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let there = addresses();
    let (left, mut left_events) = connect(options(&a, b.public(), &there), 1).unwrap();
    let (_right, mut right_events) = connect(options(&b, a.public(), &reversed(&there)), 2).unwrap();
    let former = up(&mut left_events).await;
    up(&mut right_events).await;
    left.restart();
    let session = up(&mut left_events).await;
    assert_eq!(up(&mut right_events).await, session);
    assert_ne!(former, session);
    left.mark_durable(former, ChannelId([1; 16]), 50_000);
    assert!(left.try_send(former, frame(6, 10)).is_err());
    left.mark_durable(session, ChannelId([1; 16]), 1);
    left.try_send(session, frame(7, 10)).unwrap();
    let (mut mark, mut first) = (None, None);
    while mark.is_none() || first.is_none() {
        match until(&mut right_events, |event| matches!(event, Event::Durable { .. } | Event::Frame(_))).await {
            Event::Durable { value, .. } => mark = mark.or(Some(value)),
            Event::Frame(received) => first = first.or(Some(received.body[0])),
            _ => {}
        }
    }
    assert_eq!((mark, first), (Some(1), Some(7)));
}

#[tokio::test]
async fn a_peer_with_another_key_gets_no_further_than_the_handshake() {
    let (a, b, stranger) =
        (Identity::generate().unwrap(), Identity::generate().unwrap(), Identity::generate().unwrap());
    let there = addresses();
    let (left, mut left_events) = connect(options(&a, b.public(), &there), 1).unwrap();
    let (right, mut right_events) = connect(options(&stranger, a.public(), &reversed(&there)), 2).unwrap();
    // Who dials depends on the keys; each end that takes part in a handshake says so.
    let refused = |event: &Event| matches!(event, Event::Refused { .. });
    tokio::select! {
        _ = until(&mut left_events, refused) => {}
        _ = until(&mut right_events, refused) => {}
    }
    assert!(!left.status().up && !right.status().up);
}

#[tokio::test]
async fn a_node_that_is_started_anew_is_found_again() {
    let (a, b) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let there = addresses();
    let (left, mut left_events) = connect(options(&a, b.public(), &there), 1).unwrap();
    let (right, right_events) = connect(options(&b, a.public(), &reversed(&there)), 2).unwrap();
    until(&mut left_events, |event| matches!(event, Event::Up { .. })).await;
    right.close();
    drop((right, right_events));
    let (right, mut right_events) = loop {
        match connect(options(&b, a.public(), &reversed(&there)), 3) {
            Ok(pair) => break pair,
            // The old sockets are closed by a task that has still to run.
            Err(StartError::Bind { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    until(&mut left_events, |event| matches!(event, Event::Down { .. })).await;
    let session = up(&mut left_events).await;
    up(&mut right_events).await;
    left.try_send(session, frame(7, 10)).unwrap();
    until(&mut right_events, |event| matches!(event, Event::Frame(_))).await;
    drop(right);
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let local = taken.local_addr().unwrap();
    let identity = Identity::generate().unwrap();
    let result = connect(options(&identity, PeerKey([9; 32]), &[(local, free_port())]), 1);
    let error = result.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains(&format!("Link link0: cannot use the local address {local}")), "{error}");
}

/// An address of no machine: it is kept for documents.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 7001);

#[tokio::test]
async fn a_link_without_an_address_keeps_nobody_from_the_other() {
    let (a, b) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let there = addresses();
    let mut half = there.clone();
    half[0].0 = NOWHERE;
    let (_left, mut left_events) = connect(options(&a, b.public(), &half), 1).unwrap();
    let (_right, mut right_events) = connect(options(&b, a.public(), &reversed(&there)), 2).unwrap();
    let refused = until(&mut left_events, |event| matches!(event, Event::Refused { .. })).await;
    let Event::Refused { link, reason } = refused else { unreachable!() };
    assert_eq!(link, "link0");
    assert!(reason.contains("Link link0: cannot use the local address 192.0.2.1:7001"), "{reason}");
    up(&mut left_events).await;
    up(&mut right_events).await;
}

/// Here it is a port in use: that ends in a test as well.
#[tokio::test(start_paused = true)]
async fn an_address_is_asked_for_until_it_is_there_and_what_is_wrong_is_said_once() {
    let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let local = taken.local_addr().unwrap();
    let link = LinkOptions { name: "one".into(), local, remote: NOWHERE };
    let (events, mut told) = mpsc::channel(4);
    let place = Place { link, server: None };
    let mut bound = Box::pin(place.bind_when_there(0, &events));
    // Several tries, by a clock that goes on when nothing else does.
    assert!(timeout(Duration::from_secs(1), &mut bound).await.is_err());
    drop(taken);
    let endpoint = timeout(Duration::from_secs(60), bound).await.expect("the address is free").unwrap();
    assert_eq!(endpoint.local_addr().unwrap(), local);
    assert!(matches!(told.try_recv(), Ok(LinkEvent::Refused(0, _))));
    assert!(told.try_recv().is_err(), "said twice");
}

/// Two key pairs; the first node listens, the second dials.
fn listener_and_dialler() -> (Identity, Identity) {
    let (a, b) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    if a.public() > b.public() { (a, b) } else { (b, a) }
}

/// The first datagrams of so many handshakes with `peer`, which nobody goes on with.
async fn calls(caller: &Identity, peer: PeerKey, count: usize) -> Vec<Vec<u8>> {
    let client = ClientConfig::new(Arc::new(caller.client(peer).unwrap()));
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let runtime = noq::default_runtime().unwrap();
    let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, runtime).unwrap();
    let mut calls = Vec::new();
    for _ in 0..count {
        // One of its own, to which nothing comes of the call before.
        let heard = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let connecting = endpoint.connect_with(client.clone(), heard.local_addr().unwrap(), "holdfast").unwrap();
        // Nothing answers; by then what begins the handshake was sent.
        assert!(timeout(Duration::from_millis(50), connecting).await.is_err());
        let mut bytes = [0; 2_000];
        let size = heard.recv(&mut bytes).unwrap();
        calls.push(bytes[..size].to_vec());
    }
    calls
}

#[tokio::test]
async fn those_who_call_and_fall_silent_do_not_keep_the_peer_waiting() {
    let (a, b) = listener_and_dialler();
    let stranger = Identity::generate().unwrap();
    let there = [(free_port(), free_port())];
    let (_left, mut left_events) = connect(options(&a, b.public(), &there), 1).unwrap();
    for address in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)] {
        for call in calls(&stranger, a.public(), 12).await {
            let socket = UdpSocket::bind((address, 0)).unwrap();
            socket.send_to(&call, there[0].0).unwrap();
        }
    }
    let start = Instant::now();
    let (_right, _right_events) = connect(options(&b, a.public(), &reversed(&there)), 2).unwrap();
    up(&mut left_events).await;
    assert!(start.elapsed() < Duration::from_secs(2), "only after {:?}", start.elapsed());
}

#[tokio::test]
async fn whoever_calls_from_another_address_is_not_answered() {
    let (a, b) = listener_and_dialler();
    let there = [(free_port(), free_port())];
    let (_left, mut left_events) = connect(options(&a, b.public(), &there), 1).unwrap();
    let elsewhere = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).unwrap().local_addr().unwrap();
    let (_right, _right_events) = connect(options(&b, a.public(), &[(elsewhere, there[0].0)]), 2).unwrap();
    let session = timeout(Duration::from_millis(500), up(&mut left_events)).await;
    assert!(session.is_err(), "{session:?}");
}

/// A server tells whoever speaks another version of QUIC which one it speaks.
#[tokio::test]
async fn the_end_that_dials_keeps_nothing_for_those_who_call() {
    let (a, b) = listener_and_dialler();
    let there = [(free_port(), free_port())];
    let (_left, _left_events) = connect(options(&a, b.public(), &there), 1).unwrap();
    let (_right, _right_events) = connect(options(&b, a.public(), &reversed(&there)), 2).unwrap();
    let mut call = calls(&Identity::generate().unwrap(), a.public(), 1).await.remove(0);
    call[1..5].copy_from_slice(&[0x5a; 4]);
    for (address, is_server) in [(there[0].0, true), (there[0].1, false)] {
        let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.send_to(&call, address).await.unwrap();
        let answer = timeout(Duration::from_millis(500), socket.recv(&mut [0; 2_000])).await;
        assert_eq!(answer.is_ok(), is_server);
    }
}
