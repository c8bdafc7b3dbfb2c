//! Sends and hears heartbeats on a UDP socket.

use super::{Identity, PeerKey, StartError};
use crate::heartbeat::{BEAT_SIZE, Heartbeat, Nonce, SIGNATURE_SIZE, signed};
use std::{net::SocketAddr, time::Duration};
use tokio::{net::UdpSocket, sync::mpsc, time::interval};

/// How often a heartbeat is sent.
const BEAT: Duration = Duration::from_secs(1);

/// Begins to send heartbeats, and tells each sign of life of the peer. Ends when nobody listens any more.
///
/// # Errors
/// When the local address cannot be used.
pub fn heartbeat(
    identity: Identity,
    peer: PeerKey,
    local: SocketAddr,
    remote: SocketAddr,
    nonce: Nonce,
) -> Result<mpsc::Receiver<()>, StartError> {
    let bound = std::net::UdpSocket::bind(local).and_then(|socket| {
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    });
    let socket = bound.map_err(|source| StartError::Bind { name: "heartbeat".into(), local, source })?;
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
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
