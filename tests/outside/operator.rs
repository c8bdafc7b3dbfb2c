//! Changes of the primary: by the death of its node, by lines that are cut while both live, and in good order.

use super::{
    client::Which,
    history::{Reign, Tick},
    story::{Point, Story},
};
use anyhow::{Context, bail, ensure};
use serde_json::Value as Json;
use std::{
    thread,
    time::{Duration, Instant},
};
use system_tests::sites::GROUP;

const PATIENCE: Duration = Duration::from_secs(60);
const ALL: [Which; 2] = [Which::Most, Which::Stray];

/// How a promotion ended.
enum Promotion {
    /// As the answer says.
    Done(Json),
    /// Refused, for a reason that the operator accepts.
    GivenUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// The primary's daemon is killed.
    Death,
    /// The lines are cut. The primary lives, and one client stays with it.
    Split,
}

impl Story {
    /// The primary is lost, the standby promoted; the former primary comes back and becomes a standby.
    pub(super) fn take_over(&mut self) -> anyhow::Result<()> {
        if self.random.below(2) == 0 {
            self.recover()?;
        }
        if self.random.below(2) == 0 {
            self.declare()?;
        }
        if self.random.below(2) == 0 {
            self.keep_remotely()?;
            self.rest(100, 400);
        }
        if self.random.below(2) == 0 {
            self.leased |= self.ask(self.primary, &["fence", GROUP, "lease", "--seconds", "1"]).is_ok();
        }
        let (former, standby) = (self.primary, 1 - self.primary);
        if self.status(standby)?["copying"] != false {
            self.note("no takeover: the standby is in the midst of a copy");
            return Ok(());
        }
        let loss = if self.random.below(2) == 0 { Loss::Split } else { Loss::Death };
        match loss {
            Loss::Death => {
                self.kill(former)?;
                self.call_back(&ALL)?;
                if self.random.below(2) == 0 {
                    self.look_now()?;
                }
            }
            Loss::Split => {
                self.call_back(&[Which::Most])?;
                self.world.sites.links.iter().for_each(|link| link.cut());
                self.note("all lines are cut; the primary lives");
                self.rest(20, 300);
            }
        }
        // Without a lease nobody but the operator knows that a primary that is only cut off serves no more; here it does.
        let force = loss == Loss::Split && !self.leased;
        let latest = self.random.below(2) == 0;
        let Promotion::Done(answer) = self.promote(standby, latest, force)? else {
            if loss == Loss::Death {
                self.start(former)?;
            }
            self.world.sites.links.iter().for_each(|link| link.heal());
            self.go(&ALL);
            return Ok(());
        };
        let closed = self.history.tick();
        if loss == Loss::Death || !force {
            self.history.lock().reigns[self.reign].closed = Some(closed);
        }
        let ended = self.reign;
        self.begin_reign(standby, &answer["promoted"], "the promoted node")?;
        self.go(&[Which::Most]);
        self.rest(100, 800);
        match loss {
            Loss::Death => self.start(former)?,
            Loss::Split => self.world.sites.links.iter().for_each(|link| link.heal()),
        }
        self.return_as_standby(former, ended)?;
        self.go(&ALL);
        self.rest(20, 300);
        Ok(())
    }

    /// Promotes, as long as it is refused for a reason that passes.
    fn promote(&mut self, node: usize, mut latest: bool, mut force: bool) -> anyhow::Result<Promotion> {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut words = vec!["promote", GROUP];
            words.extend(latest.then_some("--latest"));
            words.extend(force.then_some("--force"));
            let text = match self.ask(node, &words) {
                Ok(answer) => return Ok(Promotion::Done(answer)),
                Err(error) => format!("{error:#}"),
            };
            let says = |words: &[&str]| words.iter().any(|words| text.contains(words));
            if says(&["No restart point of the group's history has arrived"]) {
                latest = true;
            } else if says(&["would be lost; drop it first"]) {
                self.drop_forks(node)?;
            } else if says(&["would go on from record", "goes on without this node"]) && !self.leased {
                force = true;
            } else if says(&["would go on from record", "goes on without this node", "is being copied"]) {
                return Ok(Promotion::GivenUp);
            } else if !says(&["may still answer its hosts", "is alive and connected", "not applied yet"]) {
                bail!("a promotion is refused: {text}");
            }
            ensure!(Instant::now() < end, "a promotion is refused for too long: {text}");
            thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Reads what a new primary begins with, which is a state of the former reign, or of an earlier one's restart point.
    fn begin_reign(&mut self, node: usize, promoted: &Json, who: &str) -> anyhow::Result<()> {
        let base = self.read(node, "")?;
        let now = self.history.tick();
        let number = promoted["generation"].as_u64();
        let point = match number {
            Some(number) => self.point(number),
            None => Point { reign: self.reign, from: self.kept_remotely(), to: now },
        };
        let label = format!("{who}, node {node}, at {now}, reign {}", self.history.lock().reigns.len());
        self.view(label, point.reign, (point.from, point.to), None, base.clone());
        let last = self.status(node)?["restart_point"]["generation"].as_u64();
        self.points.retain(|point, _| last.is_some_and(|last| *point <= last));
        let mut record = self.history.lock();
        record.views.last_mut().into_iter().for_each(|view| view.received = number.is_none());
        record.reigns.push(Reign { node, base, closed: None });
        self.reign = record.reigns.len() - 1;
        drop(record);
        self.primary = node;
        // The new primary has settings of its own.
        (self.remote_since, self.leased) = (None, false);
        Ok(())
    }

    /// What was answered by this instant must be there after a promotion to the latest state.
    fn kept_remotely(&self) -> Tick {
        let record = self.history.lock();
        self.remote_since.and_then(|since| record.last_answer(self.reign, since)).unwrap_or_default()
    }

    /// The former primary comes back: it serves no more, what it alone has can be read, and stays when it becomes a standby.
    fn return_as_standby(&mut self, former: usize, ended: usize) -> anyhow::Result<()> {
        if self.random.below(2) == 0 {
            self.world.calm();
        }
        let status = self.world.sites.wait(former, "a fenced former primary", |status| status["role"] == "fenced")?;
        self.clients.go(Which::Stray, None);
        self.clients.wait_back(Which::Stray)?;
        let now = self.history.tick();
        self.history.lock().reigns[ended].closed.get_or_insert(now);
        self.note(&format!("node {former} is fenced; fork {}", status["fork"]));
        let fork = status["fork"]["name"].as_str().map(str::to_owned);
        if fork.is_some() {
            self.export(former)?;
            let state = self.read(former, "")?;
            let window = (now, self.history.tick());
            self.view(format!("the fork on node {former}"), ended, window, Some(format!("fork of {ended}")), state);
        }
        let discard = self.random.below(4) == 0;
        let words = ["demote", GROUP, "--discard-fork"];
        self.ask(former, if discard { &words } else { &words[..2] })?;
        if let (Some(fork), false) = (fork, discard) {
            if self.random.below(2) == 0 {
                self.recover()?;
            }
            self.look_at_fork(former, ended, &fork)?;
        }
        Ok(())
    }

    fn look_at_fork(&mut self, node: usize, ended: usize, fork: &str) -> anyhow::Result<()> {
        self.world.sites.wait(node, "the fork to be applied", |status| {
            let list = status["generations"].as_array();
            list.is_some_and(|list| list.iter().any(|kept| kept["name"] == fork && kept["applied"] == true))
        })?;
        self.export(node)?;
        let state = self.read(node, &format!("@{fork}"))?;
        let from = self.history.lock().reigns[ended].closed.unwrap_or_default();
        let to = self.history.tick();
        self.view(format!("{fork} on node {node}"), ended, (from, to), Some(format!("fork of {ended}")), state);
        if self.random.below(3) > 0 {
            self.drop_forks(node)?;
        }
        Ok(())
    }

    /// Lets go of all forks that a node keeps.
    fn drop_forks(&mut self, node: usize) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let list = self.status(node)?["generations"].clone();
            let names = list.as_array().context("a list")?.iter().filter_map(|kept| kept["name"].as_str());
            let Some(fork) = names.into_iter().find(|name| name.starts_with("fork")) else { return Ok(()) };
            // Its last reader may not be gone yet.
            if let Err(error) = self.ask(node, &["generation", "drop", GROUP, fork]) {
                ensure!(Instant::now() < end, "{fork} is not dropped: {error:#}");
                thread::park_timeout(Duration::from_millis(20));
            }
        }
    }

    /// In good order: nothing that was answered is lost, and the former primary answers nothing afterwards.
    pub(super) fn switch(&mut self) -> anyhow::Result<()> {
        if self.random.below(2) == 0 {
            self.recover()?;
        }
        let (from, to) = (self.primary, 1 - self.primary);
        let switched = self.ask(from, &["pair", "switch", GROUP]);
        let closed = self.history.tick();
        self.clients.go(Which::Most, None);
        self.clients.go(Which::Stray, None);
        if switched.is_err() {
            // Nothing has changed, or neither is the primary, and the message says what to do.
            self.recover_roles(from, to)?;
        }
        ALL.iter().try_for_each(|which| self.clients.wait_back(*which))?;
        if self.status(to)?["role"] == "primary" {
            self.history.lock().reigns[self.reign].closed = Some(closed);
            let now = self.history.tick();
            let leased = self.leased;
            let base = self.read(to, "")?;
            let label = format!("node {to} after a switch");
            self.view(label, self.reign, (now, now), None, base.clone());
            let mut record = self.history.lock();
            record.reigns.push(Reign { node: to, base, closed: None });
            self.reign = record.reigns.len() - 1;
            drop(record);
            self.primary = to;
            (self.remote_since, self.leased) = (None, leased);
        }
        self.go(&ALL);
        self.rest(20, 300);
        Ok(())
    }

    /// Waits until one of both is the primary, and promotes if the message said so.
    fn recover_roles(&mut self, from: usize, to: usize) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let roles = [from, to].map(|node| self.status(node).map(|status| status["role"].clone()));
            if roles.iter().any(|role| role.as_ref().is_ok_and(|role| role == "primary")) {
                return Ok(());
            }
            // Either has everything; the one that was to be it comes first. Its refusals pass.
            let promoted = self.ask(to, &["promote", GROUP, "--latest"]);
            ensure!(Instant::now() < end, "nobody is the primary after a switch that failed: {promoted:?}");
            thread::park_timeout(Duration::from_millis(50));
        }
    }
}
