//! One round: two nodes, clients that never rest, and a seed that decides what goes wrong and what the operator does about it.

use super::{
    client::{Area, Clients, Target, Which, read_all},
    faults::{Limits, World},
    history::{History, Reign, State, Tick, Value, View},
};
use anyhow::{Context, bail, ensure};
use serde_json::Value as Json;
use std::{
    collections::BTreeMap,
    env,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use system_tests::sites::GROUP;
use tools::emulator::Random;

/// Bounds every wait; far more than anything takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longer than a session lives without a word from its peer.
const LONG: Duration = Duration::from_millis(11_500);
/// Of each volume so many sectors are used: few enough that they are written again and again.
const SECTORS: usize = 2048;

/// A restart point as it was declared: in which reign, and between which instants.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// In which reign.
    pub reign: usize,
    /// When the command was given.
    pub from: Tick,
    /// When it was answered.
    pub to: Tick,
}

/// See the module.
pub struct Story {
    /// What was sent and told.
    pub history: Arc<History>,
    /// What is done to the nodes, and when.
    pub events: Vec<String>,
    /// Nodes and lines; dropped before the clients, which a dead daemon lets go.
    pub world: World,
    pub(super) clients: Clients,
    pub(super) area: Area,
    pub(super) random: Random,
    pub(super) primary: usize,
    pub(super) reign: usize,
    /// By number, as far as the present reign's history goes.
    pub(super) points: BTreeMap<u64, Point>,
    /// What is answered to a change that is sent after this instant is at the standby too.
    pub(super) remote_since: Option<Tick>,
    /// The primary answers only as long as its standby lets it.
    pub(super) leased: bool,
    start: Instant,
}

type Episode = fn(&mut Story) -> anyhow::Result<()>;

/// Everything that can happen. A new one is a row here and a function; what it may not break, the checker knows already.
pub const EPISODES: [(&str, Episode); 15] = [
    ("a takeover", Story::take_over),
    ("death of the primary", |story| story.die(story.primary)),
    ("death of the standby", |story| story.die(1 - story.primary)),
    ("lines cut", Story::cut),
    ("a standstill", Story::stand_still),
    ("a switch", Story::switch),
    ("a suspension", Story::suspend),
    ("a full disk", Story::fill),
    ("limits", Story::limit),
    ("settings", Story::set),
    ("a restart point", Story::declare),
    ("a look at the standby", Story::look),
    ("a look at generations", Story::generations),
    ("a verification", Story::verify),
    ("bad lines", |story| {
        story.disturb();
        Ok(())
    }),
];

impl Story {
    /// Two nodes in step, and clients.
    pub fn begin(seed: u64) -> anyhow::Result<Self> {
        let mut random = Random::new(seed);
        let history = Arc::new(History::default());
        // Two of three volumes have the common logical block, one the smallest.
        let volumes: Vec<_> =
            [8, 1, 8].iter().enumerate().map(|(number, &block)| (format!("{GROUP}/v{number}"), block)).collect();
        let area = Area { volumes, sectors: SECTORS, apart: random.below(3) == 0 };
        let base: State = vec![vec![Value::Zero; SECTORS]; area.volumes.len()];
        history.lock().reigns.push(Reign { node: 0, base, closed: None });
        let mut world = World::new(seed)?;
        for node in 0..2 {
            world.start(node, Limits::None)?;
        }
        world.create(&area.volumes)?;
        let clients = Clients::start(&history, &area, seed);
        let (events, points, start) = (Vec::new(), BTreeMap::new(), Instant::now());
        let (primary, reign, remote_since, leased) = (0, 0, None, false);
        let mut story =
            Self { history, events, world, clients, area, random, primary, reign, points, remote_since, leased, start };
        story.go(&[Which::Most, Which::Stray]);
        Ok(story)
    }

    /// Some episodes; the seed's own comes first, so that as many seeds as there are episodes have all of them.
    pub fn live(&mut self, seed: u64, count: usize) -> anyhow::Result<()> {
        for number in 0..count as u64 {
            let index = if number == 0 { seed } else { self.random.below(EPISODES.len() as u64) };
            let (name, episode) = EPISODES[(index % EPISODES.len() as u64) as usize];
            self.note(&format!("== {name}"));
            if self.random.below(3) == 0 {
                self.disturb();
            }
            self.rest(50, 300);
            episode(self).with_context(|| format!("in {name}"))?;
            for node in 0..2 {
                self.ask(node, &["node", "status"]).context("the daemon is gone")?;
            }
        }
        Ok(())
    }

    /// The faults end; the pair becomes whole, and both nodes hold what the clients were told.
    pub fn end(&mut self) -> anyhow::Result<()> {
        self.note("== the end");
        self.recover()?;
        self.rest(50, 200);
        self.call_back(&[Which::Most, Which::Stray])?;
        self.world.sites.wait_in_step(self.primary)?;
        let standby = 1 - self.primary;
        self.export(standby)?;
        for node in [self.primary, standby] {
            let state = self.read(node, "")?;
            let now = self.history.tick();
            let name = Some("the end".to_owned());
            self.view(format!("node {node} at the end"), self.reign, (now, now), name, state);
        }
        self.ask(self.primary, &["pair", "verify", GROUP]).map(drop)
    }

    pub(super) fn note(&mut self, text: &str) {
        let now = self.history.lock().now;
        let text = format!("{:9.3} s, instant {now}: {text}", self.start.elapsed().as_secs_f64());
        // Whoever keeps the logs wants to see where it hangs.
        if env::var_os("HOLDFAST_OUTSIDE_KEEP").is_some() {
            println!("{text}");
        }
        self.events.push(text);
    }

    /// A command; what is answered is noted.
    pub(super) fn ask(&mut self, node: usize, words: &[&str]) -> anyhow::Result<Json> {
        let answer = self.world.sites.ask(node, words);
        let text = match &answer {
            Ok(answer) => answer["done"].as_str().map_or_else(|| answer.to_string(), str::to_owned),
            Err(error) => format!("{error:#}"),
        };
        if words != ["node", "status"] && words[0] != "status" {
            let short: String = text.chars().take(300).collect();
            self.note(&format!("node {node}: {} -> {short}", words.join(" ")));
        }
        answer
    }

    pub(super) fn status(&self, node: usize) -> anyhow::Result<Json> {
        self.world.sites.ask(node, &["status", GROUP])
    }

    /// Lets the clients work for a while.
    pub(super) fn rest(&mut self, from: u64, to: u64) {
        let end = Instant::now() + Duration::from_millis(from + self.random.below(to - from));
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            thread::park_timeout(left);
        }
    }

    /// How long a fault lasts: rarely so long that sessions end.
    fn span(&mut self) -> (u64, u64) {
        let long = LONG.as_millis() as u64;
        if self.random.below(16) == 0 { (long, long + 1000) } else { (20, 900) }
    }

    pub(super) fn go(&mut self, which: &[Which]) {
        let target = Target { socket: self.world.sites.nodes[self.primary].nbd_path(), reign: self.reign };
        which.iter().for_each(|which| self.clients.go(*which, Some(target.clone())));
    }

    /// Calls clients back and waits for them.
    pub(super) fn call_back(&mut self, which: &[Which]) -> anyhow::Result<()> {
        which.iter().for_each(|which| self.clients.go(*which, None));
        which.iter().try_for_each(|which| self.clients.wait_back(*which))
    }

    pub(super) fn kill(&mut self, node: usize) -> anyhow::Result<()> {
        self.world.kill(node)?;
        let mut record = self.history.lock();
        let at = record.tick();
        record.deaths.push((node, at));
        drop(record);
        self.note(&format!("node {node} is killed"));
        Ok(())
    }

    pub(super) fn start(&mut self, node: usize) -> anyhow::Result<()> {
        self.world.start(node, Limits::None)?;
        self.note(&format!("node {node} is ready"));
        Ok(())
    }

    pub(super) fn export(&mut self, node: usize) -> anyhow::Result<()> {
        self.ask(node, &["volume", "export", GROUP, "--read-only"]).map(drop)
    }

    pub(super) fn read(&self, node: usize, suffix: &str) -> anyhow::Result<State> {
        read_all(&self.world.sites.nodes[node].nbd_path(), &self.area, suffix)
    }

    pub(super) fn view(
        &mut self,
        label: String,
        reign: usize,
        window: (Tick, Tick),
        name: Option<String>,
        state: State,
    ) {
        self.note(&format!("seen: {label}"));
        let (from, to) = window;
        self.history.lock().views.push(View { label, reign, from, to, received: false, name, state });
    }

    pub(super) fn disturb(&mut self) {
        let text = if self.random.below(4) == 0 {
            self.world.calm();
            " calm".to_owned()
        } else {
            self.world.disturb(&mut self.random)
        };
        self.note(&format!("lines:{text}"));
    }

    fn die(&mut self, node: usize) -> anyhow::Result<()> {
        for _ in 0..1 + self.random.below(3) {
            let both = self.random.below(5) == 0;
            self.kill(node)?;
            if both {
                self.kill(1 - node)?;
            } else if node == self.primary && self.random.below(2) == 0 {
                self.look_now()?;
            }
            self.rest(0, 200);
            self.start(node)?;
            if both {
                self.start(1 - node)?;
            }
            self.rest(20, 400);
        }
        Ok(())
    }

    fn cut(&mut self) -> anyhow::Result<()> {
        let which = self.random.below(3);
        let cut: Vec<usize> = (0..2).filter(|&link| which == 2 || which == link as u64).collect();
        cut.iter().for_each(|&link| self.world.sites.links[link].cut());
        self.note(&format!("lines {cut:?} are cut"));
        let (from, to) = self.span();
        self.rest(from, to);
        self.world.sites.links.iter().for_each(|link| link.heal());
        self.note("all lines are whole");
        self.rest(20, 300);
        Ok(())
    }

    fn stand_still(&mut self) -> anyhow::Result<()> {
        for _ in 0..1 + self.random.below(3) {
            let node = self.random.below(2) as usize;
            self.world.signal(node, "STOP")?;
            self.note(&format!("node {node} stands still"));
            let (from, to) = self.span();
            self.rest(from, to);
            self.world.signal(node, "CONT")?;
            self.note(&format!("node {node} goes on"));
            self.rest(20, 300);
        }
        Ok(())
    }

    fn suspend(&mut self) -> anyhow::Result<()> {
        // What is answered while a command has suspended the pair is nowhere else, at any level.
        self.remote_since = None;
        let now = ["pair", "suspend", GROUP, "--now"];
        let words = if self.random.below(2) == 0 { &now[..] } else { &now[..3] };
        // Refused in the midst of a copy, or when it is suspended already.
        let suspended = self.ask(self.primary, words).is_ok();
        self.rest(50, 500);
        let compare = ["pair", "resume", GROUP, "--no-compare"];
        let words = if self.random.below(4) == 0 { &compare[..] } else { &compare[..3] };
        let resumed = self.ask(self.primary, words);
        ensure!(!suspended || resumed.is_ok(), "a suspended pair is not resumed: {resumed:?}");
        self.rest(20, 300);
        Ok(())
    }

    /// A medium has no room for a while.
    fn fill(&mut self) -> anyhow::Result<()> {
        let node = self.random.below(2) as usize;
        let left = self.random.below(1 << 20);
        if !self.world.fill(node, left)? {
            let size = 8192 + self.random.below(16_384);
            return self.live_with(node, Limits::FileKibibytes(size));
        }
        self.note(&format!("the disk of node {node} has {left} bytes left"));
        self.rest(300, 1500);
        if self.random.below(3) == 0 {
            self.kill(node)?;
            self.start(node)?;
            self.rest(100, 500);
        }
        self.world.empty(node);
        self.note(&format!("the disk of node {node} has room again"));
        self.rest(20, 300);
        self.recover()
    }

    fn limit(&mut self) -> anyhow::Result<()> {
        let node = self.random.below(2) as usize;
        let limits = match self.random.below(2) {
            0 => Limits::Files(10 + self.random.below(40) as u32),
            _ => Limits::FileKibibytes(1024 + self.random.below(32_768)),
        };
        self.live_with(node, limits)
    }

    fn live_with(&mut self, node: usize, limits: Limits) -> anyhow::Result<()> {
        self.kill(node)?;
        match self.world.start(node, limits) {
            Ok(()) => {
                self.note(&format!("node {node} runs with {limits:?}"));
                self.rest(200, 800);
            }
            // It may refuse, and must say why.
            Err(error) => {
                let text = format!("{error:#}");
                self.note(&format!("node {node} does not run with {limits:?}: {text}"));
                ensure!(text.lines().count() > 1, "it does not say why: {text}");
            }
        }
        self.kill(node)?;
        self.start(node)?;
        self.rest(20, 300);
        self.recover()
    }

    fn set(&mut self) -> anyhow::Result<()> {
        let node = self.random.below(2) as usize;
        let policy = ["snapshot", "delayed"][self.random.below(2) as usize];
        self.ask(node, &["policy", GROUP, policy])?;
        let count = (1 + self.random.below(4)).to_string();
        let node = self.random.below(2) as usize;
        self.ask(node, &["generation", "keep", GROUP, "--count", &count])?;
        match self.random.below(4) {
            0 => {
                self.remote_since = None;
                self.ask(self.primary, &["level", GROUP, "local"])?;
            }
            1 => {
                self.remote_since = None;
                self.ask(self.primary, &["level", GROUP, "remote", "--without-peer", "continue"])?;
            }
            _ => self.keep_remotely()?,
        }
        // A lease that cannot be had at once is set all the same; ending it wants a standby that can be told.
        let words = ["fence", GROUP, "lease", "--seconds", "1"];
        if self.random.below(2) == 0 {
            self.leased |= self.ask(self.primary, &words).is_ok();
        } else if self.ask(self.primary, &["fence", GROUP, "none"]).is_ok() {
            self.leased = false;
        }
        self.rest(50, 400);
        Ok(())
    }

    /// From now on nothing is answered that the standby has not.
    pub(super) fn keep_remotely(&mut self) -> anyhow::Result<()> {
        self.ask(self.primary, &["level", GROUP, "remote", "--without-peer", "freeze"])?;
        let now = self.history.tick();
        self.remote_since.get_or_insert(now);
        Ok(())
    }

    pub(super) fn declare(&mut self) -> anyhow::Result<()> {
        for _ in 0..1 + self.random.below(3) {
            let waits = ["restart-point", GROUP, "--wait", "--timeout", "30"];
            let words = if self.random.below(2) == 0 { &waits[..] } else { &waits[..2] };
            let from = self.history.tick();
            let answer = self.ask(self.primary, words);
            let to = self.history.tick();
            if let Ok(answer) = answer {
                let number = answer["restart-point"]["generation"].as_u64().context("a number")?;
                self.points.insert(number, Point { reign: self.reign, from, to });
            }
            self.rest(20, 300);
        }
        Ok(())
    }

    /// Between which instants a generation was declared. A number that no answer named belongs to a command that was not answered
    /// well, after the last one that was.
    pub(super) fn point(&mut self, number: u64) -> Point {
        let before = self.points.range(..=number).next_back().map(|(found, point)| (*found, *point));
        match before {
            Some((found, point)) if found == number => point,
            Some((_, point)) if point.reign == self.reign => Point { to: self.history.tick(), ..point },
            _ => Point { reign: self.reign, from: 0, to: self.history.tick() },
        }
    }

    fn look(&mut self) -> anyhow::Result<()> {
        let calls = self.random.below(2) == 0;
        if calls {
            self.call_back(&[Which::Most, Which::Stray])?;
        } else {
            self.world.sites.links.iter().for_each(|link| link.cut());
            self.note("all lines are cut");
            self.rest(20, 200);
        }
        self.look_now()?;
        self.world.sites.links.iter().for_each(|link| link.heal());
        self.note("all lines are whole");
        self.go(&[Which::Most, Which::Stray]);
        Ok(())
    }

    /// What the standby has received is what the primary was, at some instant.
    pub(super) fn look_now(&mut self) -> anyhow::Result<()> {
        let standby = 1 - self.primary;
        self.export(standby)?;
        if self.status(standby)?["copying"] != false {
            self.note("the standby says that it holds no state of its primary's");
            return Ok(());
        }
        let state = self.read(standby, "")?;
        // In the meantime a copy may have begun.
        if self.status(standby)?["copying"] == false {
            let to = self.history.tick();
            let label = format!("the standby, node {standby}, at {to}");
            self.view(label, self.reign, (0, to), None, state);
            self.history.lock().views.last_mut().into_iter().for_each(|view| view.received = true);
        }
        Ok(())
    }

    fn generations(&mut self) -> anyhow::Result<()> {
        if self.points.len() < 2 {
            self.declare()?;
        }
        for node in 0..2 {
            if node != self.primary {
                self.export(node)?;
            }
            self.look_at_generations(node)?;
        }
        Ok(())
    }

    pub(super) fn look_at_generations(&mut self, node: usize) -> anyhow::Result<()> {
        let status = self.status(node)?;
        for kept in status["generations"].as_array().context("a list")?.clone() {
            let name = kept["name"].as_str().context("a name")?;
            let (Ok(number), true) = (name.parse::<u64>(), kept["applied"] == true) else { continue };
            let Ok(state) = self.read(node, &format!("@{name}")) else {
                // It may have been let go of: by a newer one that has arrived, or for want of room.
                let list = self.status(node)?["generations"].clone();
                let there = list.as_array().is_some_and(|list| list.iter().any(|it| it["name"] == kept["name"]));
                ensure!(!there, "generation {name} is kept on node {node} and cannot be read");
                continue;
            };
            let point = self.point(number);
            let label = format!("generation {name} on node {node}");
            self.view(label, point.reign, (point.from, point.to), Some(format!("generation at {}", kept["at"])), state);
        }
        Ok(())
    }

    fn verify(&mut self) -> anyhow::Result<()> {
        self.recover()?;
        if let Err(error) = self.ask(self.primary, &["pair", "verify", GROUP]) {
            let text = format!("{error:#}");
            ensure!(!text.contains("differ"), "the nodes differ: {text}");
        }
        Ok(())
    }

    /// Ends all faults, and does what an operator does until the pair is whole (docs/operating.md, docs/faults.md).
    pub(super) fn recover(&mut self) -> anyhow::Result<()> {
        self.world.calm();
        self.world.sites.links.iter().for_each(|link| link.heal());
        for node in 0..2 {
            self.world.empty(node);
            if self.world.limits(node) != Limits::None {
                self.kill(node)?;
                self.start(node)?;
            }
        }
        let end = Instant::now() + PATIENCE;
        loop {
            let status = [self.status(0), self.status(1)];
            for (node, status) in status.iter().enumerate() {
                if status.as_ref().is_err_and(|error| format!("{error:#}").contains("NOT OPENED")) {
                    // Refused as long as the reason lasts.
                    let _ = self.ask(node, &["group", "reopen", GROUP]);
                } else if status.as_ref().is_ok_and(|status| !status["stopped"].is_null()) {
                    self.ask(node, &["group", "reopen", GROUP])?;
                } else if status.as_ref().is_ok_and(|status| status["role"] == "fenced") {
                    self.ask(node, &["demote", GROUP])?;
                }
            }
            let mut shown = String::new();
            if let Ok(status) = &status[self.primary] {
                let pair = &status["pair"];
                if pair["state"] == "duplex" && status["connected"] == true && status["stopped"].is_null() {
                    return Ok(());
                }
                if pair["cause"] == "command" || pair["cause"] == "medium-error" {
                    self.ask(self.primary, &["pair", "resume", GROUP])?;
                }
                shown = status.to_string();
            }
            if Instant::now() > end {
                bail!("the pair does not become whole; its primary says {shown}");
            }
            thread::park_timeout(Duration::from_millis(20));
        }
    }
}
