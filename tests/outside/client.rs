//! Hosts: each has a connection of its own, keeps several requests under way, and notes what it sends and is told.

use super::history::{Action, History, SECTOR, State, decode, encode};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tools::{
    emulator::Random,
    nbd_client::{NbdClient, NbdError, NbdRequest},
};

/// How many clients write to the primary.
const CLIENTS: u64 = 4;
/// Longer than anything that a daemon may let a host wait for once the faults are over.
const PATIENCE: Duration = Duration::from_secs(90);

/// The parts of the volumes that are used.
#[derive(Clone, Debug)]
pub struct Area {
    /// Each volume's export and logical block, in sectors.
    pub volumes: Vec<(String, usize)>,
    /// How many sectors of each.
    pub sectors: usize,
    /// Each client has its own part; else they write over each other.
    pub apart: bool,
}

/// Where clients go.
#[derive(Clone, Debug)]
pub struct Target {
    /// The node's NBD server.
    pub socket: PathBuf,
    /// Whose reign it is.
    pub reign: usize,
}

/// Clients that go where they are told. The last one can be left behind at a former primary.
pub struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    history: Arc<History>,
    area: Area,
    stop: AtomicBool,
    /// Rises with each change of a target.
    version: AtomicU64,
    places: Mutex<[Place; 2]>,
}

#[derive(Clone, Debug, Default)]
struct Place {
    target: Option<Target>,
    connected: usize,
}

/// Which clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// All but one.
    Most = 0,
    /// The one that may be left behind.
    Stray = 1,
}

impl Clients {
    /// Starts them; they go nowhere yet.
    pub fn start(history: &Arc<History>, area: &Area, seed: u64) -> Self {
        let shared = Arc::new(Shared {
            history: history.clone(),
            area: area.clone(),
            stop: AtomicBool::new(false),
            version: AtomicU64::new(0),
            places: Mutex::default(),
        });
        let thread = |number| {
            let shared = shared.clone();
            thread::spawn(move || run(&shared, number, Random::new(seed ^ (number << 40))))
        };
        let threads = (0..CLIENTS).map(thread).collect();
        Self { shared, threads }
    }

    /// Sends them somewhere.
    pub fn go(&self, which: Which, target: Option<Target>) {
        self.shared.places()[which as usize].target = target;
        self.shared.version.fetch_add(1, Ordering::SeqCst);
    }

    /// Waits until those that were called back have come.
    ///
    /// # Errors
    /// When a daemon does not answer them and does not die either.
    pub fn wait_back(&self, which: Which) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let count = self.shared.places()[which as usize].connected;
            if count == 0 {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < end, "{count} clients ({which:?}) wait for an answer that does not come");
            thread::park_timeout(Duration::from_millis(2));
        }
    }
}

impl Drop for Clients {
    /// The daemons must be dead or well, or else a client may wait for ever.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.threads.drain(..).for_each(|thread| {
            // A client that panicked has said so.
            let _ = thread.join();
        });
    }
}

impl Shared {
    fn places(&self) -> MutexGuard<'_, [Place; 2]> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where to go, with the version of that; counted as connected until it is left.
    fn enter(&self, which: Which) -> Option<(Target, u64)> {
        let mut places = self.places();
        let place = &mut places[which as usize];
        let target = place.target.clone()?;
        place.connected += 1;
        Some((target, self.version.load(Ordering::SeqCst)))
    }

    fn leave(&self, which: Which) {
        self.places()[which as usize].connected -= 1;
    }
}

fn run(shared: &Shared, number: u64, mut random: Random) {
    let which = if number + 1 == CLIENTS { Which::Stray } else { Which::Most };
    while !shared.stop.load(Ordering::SeqCst) {
        if let Some((target, version)) = shared.enter(which) {
            let mut client = Client::new(shared, number as usize, target.reign, &mut random);
            // Broken connections are what this is about; what was under way stays open in the history.
            let _ = client.visit(&target, version);
            shared.leave(which);
        }
        thread::park_timeout(Duration::from_millis(5));
    }
}

struct Client<'a> {
    shared: &'a Shared,
    random: &'a mut Random,
    number: usize,
    reign: usize,
    volume: usize,
    /// Cookie of the connection, number in the history.
    under_way: BTreeMap<u64, Option<usize>>,
}

impl<'a> Client<'a> {
    fn new(shared: &'a Shared, number: usize, reign: usize, random: &'a mut Random) -> Self {
        let volume = random.below(shared.area.volumes.len() as u64) as usize;
        Self { shared, random, number, reign, volume, under_way: BTreeMap::new() }
    }

    fn visit(&mut self, target: &Target, version: u64) -> Result<(), NbdError> {
        let mut connection = NbdClient::connect_unix(&target.socket, &self.shared.area.volumes[self.volume].0)?;
        if connection.is_read_only() {
            return Ok(());
        }
        let depth = 1 + self.random.below(8) as usize;
        let stays =
            || self.shared.version.load(Ordering::SeqCst) == version && !self.shared.stop.load(Ordering::SeqCst);
        while stays() {
            // Bursts fill a batch, and pauses let one end; also the history stays short enough to be decided.
            for _ in 0..1 + self.random.below(12) {
                self.submit(&mut connection)?;
                while self.under_way.len() >= depth {
                    self.complete(&mut connection)?;
                }
            }
            while !self.under_way.is_empty() && self.random.below(3) > 0 {
                self.complete(&mut connection)?;
            }
            thread::park_timeout(Duration::from_millis(5 + self.random.below(20)));
        }
        while !self.under_way.is_empty() {
            self.complete(&mut connection)?;
        }
        Ok(())
    }

    fn submit(&mut self, connection: &mut NbdClient) -> Result<(), NbdError> {
        let (first, count) = self.sectors();
        let (offset, size) = ((first * SECTOR) as u64, (count * SECTOR) as u32);
        let history = &self.shared.history;
        let note = |action| history.send(self.reign, self.volume, (first, count), action);
        // The number is noted before the request is sent: a write that is there was sent after this instant.
        let (number, cookie) = match self.random.below(20) {
            0 => (None, connection.submit(NbdRequest::Flush)?),
            1 => (Some(note(Action::Zero)), connection.submit(NbdRequest::Trim { offset, size })?),
            2 => (Some(note(Action::Zero)), connection.submit(NbdRequest::WriteZeroes { offset, size })?),
            3..=7 => (Some(note(Action::Read(Vec::new()))), connection.submit(NbdRequest::Read { offset, size })?),
            kind => {
                let tag = history.new_tag();
                let data = encode(tag, self.volume, first, count);
                let durable = kind > 17;
                (Some(note(Action::Write(tag))), connection.submit(NbdRequest::Write { offset, data: &data, durable })?)
            }
        };
        self.under_way.insert(cookie, number);
        Ok(())
    }

    fn complete(&mut self, connection: &mut NbdClient) -> Result<(), NbdError> {
        let completion = connection.complete()?;
        let number = self.under_way.remove(&completion.cookie).flatten();
        match (completion.result, number) {
            (Ok(data), Some(number)) => self.shared.history.answer(number, &data),
            (Err(NbdError::Request { code, .. }), Some(number)) => {
                self.shared.history.refuse(number, code);
                // A host that gets errors does not hurry.
                thread::park_timeout(Duration::from_millis(20));
            }
            (Err(error), _) => return Err(error),
            (Ok(_), None) => {}
        }
        Ok(())
    }

    /// Where the next request goes: mostly small, sometimes so large that it takes another way; one in four to a few places that all
    /// clients like.
    fn sectors(&mut self) -> (usize, usize) {
        let area = &self.shared.area;
        let block = area.volumes[self.volume].1;
        let blocks = match self.random.below(16) {
            0..=7 => 1,
            8..=11 => 1 + self.random.below(4) as usize,
            12..=14 => 1 + self.random.below(32) as usize,
            _ => 128 / block,
        };
        let (mut from, mut to) = (0, area.sectors / block);
        if area.apart {
            let part = to / CLIENTS as usize;
            (from, to) = (self.number * part, (self.number + 1) * part);
        }
        let blocks = blocks.min(to - from);
        let mut span = to - from - blocks + 1;
        if self.random.below(4) == 0 {
            span = span.min(16);
        }
        let first = from + self.random.below(span as u64) as usize;
        (first * block, blocks * block)
    }
}

/// Reads the used parts of all volumes: of the present state, or with a suffix of a generation. Read until two readings are the same:
/// what was read first had not changed when what was read last was read, so that it is the state of one instant.
///
/// # Errors
/// When the node does not serve it, or it does not come to rest.
pub fn read_all(socket: &Path, area: &Area, suffix: &str) -> anyhow::Result<State> {
    let once = || -> anyhow::Result<State> {
        let mut state = State::new();
        for (volume, (export, _)) in area.volumes.iter().enumerate() {
            let mut client = NbdClient::connect_unix(socket, &format!("{export}{suffix}"))?;
            let mut values = Vec::with_capacity(area.sectors);
            while values.len() < area.sectors {
                let count = (area.sectors - values.len()).min(512);
                let data = client.read((values.len() * SECTOR) as u64, (count * SECTOR) as u32)?;
                values.extend(decode(&data, volume, values.len()));
            }
            state.push(values);
        }
        Ok(state)
    };
    let mut before = once()?;
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let again = once()?;
        if again == before {
            return Ok(again);
        }
        before = again;
    }
    anyhow::bail!("{suffix} on {} changes all the time", socket.display())
}
