//! How each step of a script is taken.

use crate::{
    operator::Wanted,
    script::{Action, Step},
    world::World,
};
use holdfast::command::Command;

impl World {
    pub(crate) fn take_step(&mut self, step: Step) {
        self.trace.mark(&format!("step: {}", crate::operator::first_word(&step.action)));
        if !matches!(step.action, Action::Request | Action::Look(_)) {
            self.trace.note(self.now, || format!("== {:?}", step.action));
        }
        let salt = step.salt;
        let group = salt as usize % self.config.group_count;
        match step.action {
            Action::Request => self.ask(salt),
            Action::Burst => self.burst(salt),
            Action::RestartPoint => self.restart_point(salt),
            Action::Kill(node) => self.kill(node),
            Action::PowerLoss(node) => self.lose_power(node),
            Action::Stop(node) => (0..self.config.group_count).for_each(|group| {
                self.order(node, group, Command::Stop, Wanted::Stop);
            }),
            Action::Start(node) => {
                // One that was stopped in good order has nothing left to do.
                if self.nodes[node].daemon.as_ref().is_some_and(|daemon| daemon.is_stopped()) {
                    self.kill(node);
                }
                self.start(node);
            }
            Action::Ambush(node) => self.lie_in_wait(node, salt),
            Action::Coup => self.coup_at(group, salt),
            Action::Stall(node) => self.stall(node, salt),
            Action::Cut(which) => self.cut(which, [true; 2]),
            Action::HalfCut(which, from) => self.cut(which, [from == 0, from == 1]),
            Action::Heal => self.heal(),
            Action::Heartbeat(carries) => self.heartbeat = carries,
            Action::SlowMedia(node, slow) => self.nodes[node].ills.slow = slow,
            Action::MediaErrors(node, fails) => {
                let both = (salt / 100).is_multiple_of(3);
                for node in (0..2).filter(|other| *other == node || both) {
                    let ills = &mut self.nodes[node].ills;
                    ills.errors = if fails { 1 + salt % 50 } else { 0 };
                    ills.only_reads = (salt / 50).is_multiple_of(2);
                }
            }
            Action::FullMedia(node, full) => self.nodes[node].ills.full = full,
            Action::Rot(node) => {
                if self.may_rot(node) {
                    self.rot(node, salt);
                }
            }
            Action::LostWrite(node) => {
                if self.may_rot(node) {
                    self.nodes[node].ills.lost_writes = 1;
                }
            }
            Action::Jump(node) => self.nodes[node].clock.wall = salt % 1_000_000_000_000,
            Action::Promote => self.promote(salt),
            Action::Demote => self.demote(salt),
            Action::Switch => self.switch(salt),
            Action::Command(errand) => self.command(errand, salt),
            Action::Look(node) => self.look(node, group),
            Action::LookBack(node) => self.look_back(node, group),
            Action::Hold(node, true) => self.hold(node, group, salt),
            Action::Hold(node, false) => self.let_go(node, group),
            Action::Reopen(node) => self.reopen(node),
            Action::Replace => self.replace(),
        }
    }

    /// Cuts one link (0, 1) or both (2), from the nodes named.
    fn cut(&mut self, which: usize, from: [bool; 2]) {
        for link in (0..2).filter(|link| which == 2 || *link == which) {
            for node in (0..2).filter(|node| from[*node]) {
                let settings = self.lines[link][node].settings().clone();
                self.lines[link][node].change_settings(link_model::LineSettings { cut: true, ..settings });
            }
        }
    }

    /// Nothing carries any more.
    pub(crate) fn cut_all(&mut self) {
        self.cut(2, [true; 2]);
    }

    /// The links carry again.
    pub(crate) fn heal(&mut self) {
        for line in self.lines.iter_mut().flatten() {
            let settings = line.settings().clone();
            line.change_settings(link_model::LineSettings { cut: false, ..settings });
        }
    }
}
