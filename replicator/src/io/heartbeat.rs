//! Sends and hears heartbeats on a UDP socket.

use super::{Identity, PeerKey, StartError, if_there};
use crate::heartbeat::{BEAT_SIZE, Heartbeat, Nonce, SIGNATURE_SIZE, signed};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    net::UdpSocket,
    sync::mpsc,
    time::{interval, sleep},
};
use tracing::warn;

/// How often a heartbeat is sent.
const BEAT: Duration = Duration::from_secs(1);

/// Begins to send heartbeats, and tells each sign of life of the peer. Ends when nobody listens any more. An address that is not this
/// machine's yet is waited for.
///
/// # Errors
/// When the local address cannot be used for another reason.
pub fn heartbeat(
    identity: Identity,
    peer: PeerKey,
    local: SocketAddr,
    remote: SocketAddr,
    nonce: Nonce,
) -> Result<mpsc::Receiver<()>, StartError> {
    let mut bound = if_there(bind(local))?;
    if bound.is_none() {
        warn!(%local, "No heartbeats until this machine has the address");
    }
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let socket = loop {
            match bound {
                Some(socket) => break socket,
                None if sender.is_closed() => return,
                None => sleep(BEAT).await,
            }
            bound = bind(local).ok();
        };
        let (mut side, mut timer, mut bytes) =
            (Heartbeat::new(nonce), interval(BEAT), [0; 2 * BEAT_SIZE + SIGNATURE_SIZE]);
        loop {
            tokio::select! {
                () = sender.closed() => return,
                _ = timer.tick() => {
                    let beat = side.beat();
                    let message = [&beat[..], &identity.sign(&signed(&peer.0, &beat))].concat();
                    // What cannot be sent now is not worth another try.
                    let _ = socket.send_to(&message, remote).await;
                }
                got = socket.recv_from(&mut bytes) => {
                    let Some((beat, signature)) = got.ok().and_then(|(size, _)| bytes.get(..size)?.split_at_checked(BEAT_SIZE))
                    else {
                        continue;
                    };
                    let is_theirs = peer.has_signed(&signed(&identity.public().0, beat), signature);
                    if is_theirs && side.hear(beat) {
                        // Whoever has not taken the last one knows already.
                        let _ = sender.try_send(());
                    }
                }
            }
        }
    });
    Ok(receiver)
}

fn bind(local: SocketAddr) -> Result<UdpSocket, StartError> {
    let bound = std::net::UdpSocket::bind(local).and_then(|socket| {
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    });
    bound.map_err(|source| StartError::Bind { name: "heartbeat".into(), local, source })
}
