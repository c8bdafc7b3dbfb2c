//! The daemon from start to stop.

use crate::{config::Config, control, events, key, node::Node, peer::Peer, ublk, unix_socket};
use anyhow::Context;
use replicator::{
    io::{NodeOptions, connect, heartbeat},
    session::SessionOptions,
};
use std::{os::unix::net::UnixDatagram, path::Path, thread};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
};
use tracing::{error, info};

/// Runs until it is told to stop.
pub fn run(config_path: &Path) -> anyhow::Result<()> {
    let config = Config::read_to_serve(config_path)?;
    ublk::never_wait_for_memory();
    let identity = key::load_or_create(&config.key_path())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended: anyhow::Result<()> = runtime.block_on(async {
        // The control socket comes first: it tells a second daemon that it is the second.
        let listener = unix_socket::listen(&config.control_path(), "node.control")?;
        let directory = &config.node.directory;
        events::keep(directory, config.events.hook.as_ref().map(|hook| hook.get_ref().clone()))
            .with_context(|| format!("Cannot keep events in {}", directory.display()))?;
        let mut connected = Vec::new();
        for peer in &config.peers {
            let peer_key = peer.key()?;
            let options = NodeOptions {
                identity: identity.clone(),
                peer: peer_key,
                links: peer.link_options(),
                session: SessionOptions { mode: peer.mode, ..SessionOptions::default() },
            };
            let mut seed = [0; 8];
            getrandom::fill(&mut seed).context("Cannot get random bytes")?;
            let link =
                connect(options, u64::from_le_bytes(seed)).with_context(|| format!("Peer {}", peer.name.get_ref()))?;
            let beats = match &peer.heartbeat {
                None => None,
                Some(path) => {
                    let mut nonce = [0; 16];
                    getrandom::fill(&mut nonce).context("Cannot get random bytes")?;
                    let (local, remote) = (*path.local.get_ref(), *path.remote.get_ref());
                    let begun = heartbeat(identity.clone(), peer_key, local, remote, nonce);
                    Some(begun.with_context(|| format!("Peer {}", peer.name.get_ref()))?)
                }
            };
            connected.push((peer.name.get_ref().clone(), peer_key, link, beats));
        }
        let (asked_sender, asked) = mpsc::channel(64);
        let (ready_sender, ready) = oneshot::channel();
        let (stop_sender, stop) = oneshot::channel();
        let (stopped_sender, stopped) = oneshot::channel();
        let (alive, mut ended) = oneshot::channel::<()>();
        let (name, key) = (config.node.name.get_ref().clone(), identity.public());
        let disk = thread::Builder::new().name("disk".into()).spawn(move || -> anyhow::Result<()> {
            // Dropped when the thread ends, however it ends.
            let _alive = alive;
            ring().start(async move {
                let mut peers = Vec::new();
                let mut events = Vec::new();
                for (name, key, (handle, receiver), beats) in connected {
                    let peer = Peer::new(name, key, handle);
                    events.push((peer.clone(), receiver, beats));
                    peers.push(peer);
                }
                let node = Node::open(config, key, peers).context("Cannot open the node's directory")?;
                let server = node.serve_nbd()?;
                for (peer, receiver, beats) in events {
                    if let Some(beats) = beats {
                        tokio_uring::spawn(node.clone().follow_heartbeat(peer.clone(), beats));
                    }
                    tokio_uring::spawn(node.clone().follow(peer, receiver));
                }
                tokio_uring::spawn(node.clone().answer(asked));
                tokio_uring::spawn(node.clone().attach_again());
                // Nobody waits for it only if the daemon is going down already.
                let _ = ready_sender.send(());
                let _ = stop.await;
                drop(server);
                node.stop().await;
                // Not when the thread has ended: that waits for the threads it has started, and they may wait for ever.
                let _ = stopped_sender.send(());
                Ok(())
            })
        })?;
        tokio::spawn(async move {
            if let Err(error) = control::serve(listener, asked_sender).await {
                error!(%error, "The control socket failed");
            }
        });
        if ready.await.is_err() {
            return join(disk);
        }
        info!(node = name, key = %identity.public(), "Ready");
        notify("READY=1");
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            // Nothing is served any more: the service manager must know.
            _ = &mut ended => return join(disk).and(Err(anyhow::anyhow!("The disk thread ended"))),
        }
        info!("Stopping");
        notify("STOPPING=1");
        let _ = stop_sender.send(());
        tokio::select! {
            stopped = stopped => stopped.context("The disk thread ended before its groups were stopped"),
            // A second signal means at once.
            _ = terminate.recv() => std::process::exit(1),
            _ = interrupt.recv() => std::process::exit(1),
        }
    });
    // The same here: nothing that was promised depends on a thread that is left.
    runtime.shutdown_background();
    ended
}

/// The disk thread's ring. The kernel takes note of what has ended when the thread next asks it for something, which it does all
/// the time: interrupting it for that takes the processors of both sides, on a virtual machine by way of the host. Linux before 5.19
/// cannot.
fn ring() -> tokio_uring::Builder {
    let (mut builder, mut setup) = (tokio_uring::builder(), tokio_uring::uring_builder());
    setup.setup_coop_taskrun();
    if setup.build(1).is_ok() {
        builder.uring_builder(&setup);
    }
    builder
}

fn join(disk: thread::JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    disk.join().unwrap_or_else(|_| Err(anyhow::anyhow!("The disk thread panicked")))
}

/// Tells the service manager, if there is one (sd_notify(3)).
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Ok(socket) = UnixDatagram::unbound() {
        // A service manager that does not listen is its own trouble.
        let _ = socket.send_to(state.as_bytes(), Path::new(&path));
    }
}
