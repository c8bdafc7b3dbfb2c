//! Generations: what is kept is what it was, through everything, and what is let go of gives its room back.

use super::{
    pair_bench::{Pair, State},
    tests::{Bench, pick},
    *,
};
use crate::{
    command::{Command, CommandError, CommandReply, GenerationId, GenerationKind, PromoteTarget},
    disk::Storage,
    format::journal_superblock::SLOTS,
    pair::{ApplyPolicy, Role},
    request::{Access, Operation, Request},
    table::Table,
    units::{Epoch, Generation, WallClock},
};
use proptest::{prelude::*, test_runner::TestRng};
extern crate std;

const POOL: MediumId = MediumId::Pool(VolumeId(1));

fn number(number: u32) -> GenerationId {
    GenerationId::Number(Generation(number))
}

fn keep(count: u16) -> Command {
    Command::KeepGenerations { count, seconds: 0 }
}

impl Pair {
    /// Some writes and a restart point, all of it applied on both nodes; the state.
    fn interval(&mut self, round: u64) -> State {
        for part in 0..4 {
            self.write_at((round * 3 + part * 5) % 16 * (64 << 10) + part * 4096, 4096 << (part % 2));
        }
        self.write_at((round + 7) % 16 * (64 << 10), 64 << 10);
        self.restart_point();
        self.idle();
        self.settle();
        self.state.clone()
    }

    fn names(&self, node: usize) -> Vec<GenerationId> {
        self.nodes[node].group.status(self.now).generations.iter().map(|kept| kept.name).collect()
    }

    /// The standby becomes primary while the former primary writes what it does not have; then both meet.
    fn fork(&mut self) {
        self.interval(0);
        self.cut();
        self.fill(0, 4096);
        assert!(self.promote(PromoteTarget::RestartPoint));
        self.connect();
        self.settle();
    }

    /// What a generation of this name holds.
    fn generation(&mut self, node: usize, name: GenerationId) -> State {
        let order = self.nodes[node].group.find_generation(name).expect("it is kept");
        self.content_of(node, order)
    }

    /// Physical blocks that a node uses, when everything has come to rest.
    fn used(&mut self, node: usize) -> u32 {
        self.nodes[node].group.checkpoint.wanted = true;
        self.pass_to(self.now.monotonic.after(2_000_000));
        self.settle();
        self.nodes[node].group.status(self.now).volumes[0].pool_used_count
    }
}

#[test]
fn generations_are_kept_read_and_dropped() {
    let mut pair = Pair::in_step();
    pair.command(1, keep(3)).unwrap();
    let states: Vec<State> = (0..5).map(|round| pair.interval(round)).collect();
    assert_eq!(pair.names(1), [number(5), number(4), number(3)]);
    assert_eq!(pair.names(0), [number(5)], "the rule is that of one node");
    let check = |pair: &mut Pair, names: &[u32]| {
        assert_eq!(pair.names(1), names.iter().map(|name| number(*name)).collect::<Vec<_>>());
        for name in names {
            assert!(pair.generation(1, number(*name)) == states[*name as usize - 1], "generation {name}");
        }
    };
    check(&mut pair, &[5, 4, 3]);
    // What comes later changes nothing, nor does the daemon's death.
    pair.fill(0, 1 << 20);
    pair.reopen(1);
    pair.connect();
    pair.settle();
    check(&mut pair, &[5, 4, 3]);
    let kept = [number(5), number(4), number(3)].to_vec();
    assert_eq!(
        pair.command(1, Command::DropGeneration(number(2))),
        Err(CommandError::NotKept { asked: number(2), kept })
    );
    assert_eq!(pair.command(1, Command::DropGeneration(number(5))), Err(CommandError::LastRestartPoint(number(5))));
    pair.command(1, Command::DropGeneration(number(4))).unwrap();
    check(&mut pair, &[5, 3]);
    // Answered means: for ever.
    pair.reopen(1);
    check(&mut pair, &[5, 3]);
    pair.command(1, keep(1)).unwrap();
    pair.settle();
    check(&mut pair, &[5]);
    // Whatever was kept is unused again, but for the block that the list of kept blocks is in.
    let used = pair.used(1);
    assert_eq!(used, pair.used(0) + 1);
    pair.finish();
}

#[test]
fn a_generation_that_is_read_is_not_let_go_of() {
    let mut pair = Pair::in_step();
    let state = pair.interval(0);
    let order = pair.nodes[1].group.find_generation(number(1)).unwrap();
    pair.nodes[1].group.hold_generation(order);
    (1..4).for_each(|round| drop(pair.interval(round)));
    assert_eq!(pair.names(1), [number(4), number(1)]);
    assert_eq!(pair.command(1, Command::DropGeneration(number(1))), Err(CommandError::GenerationInUse(number(1))));
    assert!(pair.content_as(1, Access::Generation(order)) == state);
    pair.nodes[1].group.release_generation(order);
    assert_eq!(pair.names(1), [number(4)]);
    // Who does not hold it cannot read it.
    let request = Request {
        id: RequestId(1 << 40),
        volume: VolumeId(1),
        access: Access::Generation(order),
        operation: Operation::Read { offset: 0, size: 4096 },
    };
    pair.nodes[1].group.handle_request(pair.now, request).unwrap();
    pair.settle();
    assert_eq!(pair.nodes[1].answers[&RequestId(1 << 40)], Err(RequestError::NotKept));
}

/// What a group that is opened in place used itself is free again; what is read from outside is not.
#[test]
fn a_group_that_is_opened_in_place_holds_for_readers_only() {
    let mut pair = Pair::in_step();
    pair.command(1, keep(8)).unwrap();
    (0..4).for_each(|round| drop(pair.interval(round)));
    let read = pair.nodes[1].group.find_generation(number(3)).unwrap();
    pair.nodes[1].group.hold_generation(read);
    pair.command(1, Command::BeginTrial { generation: Some(number(1)) }).unwrap();
    pair.cut();
    let promote = Command::Promote { target: PromoteTarget::Generation(Generation(2)), force: true };
    pair.nodes[1].group.handle_command(pair.now, CommandId(1 << 40), promote);
    let in_use = |pair: &Pair| -> Vec<GenerationId> {
        let kept = pair.nodes[1].group.status(pair.now).generations;
        kept.iter().filter(|kept| kept.in_use).map(|kept| kept.name).collect()
    };
    assert_eq!(in_use(&pair), [number(3), number(2), number(1)]);
    let mut former = pair.reopen(1);
    pair.nodes[1].group.inherit(&mut former);
    assert_eq!(in_use(&pair), [number(3)]);
    assert_eq!(pair.command(1, Command::DropGeneration(number(3))), Err(CommandError::GenerationInUse(number(3))));
    for number in [1, 2].map(number) {
        pair.command(1, Command::DropGeneration(number)).unwrap();
    }
    pair.nodes[1].group.release_generation(read);
    pair.command(1, Command::DropGeneration(number(3))).unwrap();
    assert_eq!(pair.names(1), [number(4)]);
}

/// A reader of a group that is opened in place notices nothing, though the rule would have let go of what it reads.
#[test]
fn what_is_read_outlives_a_group_that_is_opened_in_place() {
    let mut pair = Pair::in_step();
    let state = pair.interval(0);
    let order = pair.nodes[1].group.find_generation(number(1)).unwrap();
    pair.nodes[1].group.hold_generation(order);
    (1..4).for_each(|round| drop(pair.interval(round)));
    pair.used(1);
    let mut former = pair.reopen(1);
    pair.nodes[1].group.inherit(&mut former);
    assert!(pair.content_as(1, Access::Generation(order)) == state);
    pair.connect();
    pair.settle();
    assert!(pair.content_as(1, Access::Generation(order)) == state);
    pair.nodes[1].group.release_generation(order);
    assert_eq!(pair.names(1), [number(4)]);
    pair.finish();
}

/// What nobody reads any more when a group is opened is let go of, as if it had been opened for the first time.
#[test]
fn a_group_lets_go_of_what_nobody_reads_when_it_is_opened() {
    let mut pair = Pair::in_step();
    pair.interval(0);
    let order = pair.nodes[1].group.find_generation(number(1)).unwrap();
    pair.nodes[1].group.hold_generation(order);
    (1..4).for_each(|round| drop(pair.interval(round)));
    pair.used(1);
    pair.reopen(1);
    pair.nodes[1].drain();
    assert_eq!(pair.names(1), [number(4)]);
}

/// A full pool lets go of the oldest that nobody reads.
#[test]
fn a_full_pool_spares_what_is_read() {
    let mut pair = Pair::in_step();
    pair.command(1, keep(8)).unwrap();
    (0..3).for_each(|round| drop(pair.interval(round)));
    let oldest = pair.nodes[1].group.find_generation(number(1)).unwrap();
    pair.nodes[1].group.hold_generation(oldest);
    assert!(pair.nodes[1].group.drop_oldest_generation());
    assert_eq!(pair.names(1), [number(3), number(1)]);
}

/// Nothing is given up for room that comes by itself.
#[test]
fn a_full_pool_gives_up_nothing_while_room_is_on_its_way() {
    let mut pair = Pair::in_step();
    pair.command(1, keep(8)).unwrap();
    (0..2).for_each(|round| drop(pair.interval(round)));
    pair.command(1, Command::BeginTrial { generation: None }).unwrap();
    pair.used(1);
    let table = |pair: &mut Pair, change: &dyn Fn(&mut Table)| {
        change(&mut pair.nodes[1].group.volumes.get_mut(&VolumeId(1)).unwrap().table);
    };
    let free_one = |table: &mut Table| {
        let block = table.blocks.allocate().unwrap();
        table.blocks.free(block);
    };
    // What is left then: generations, and the trial.
    let left = |pair: &mut Pair| {
        assert!(pair.nodes[1].group.drop_oldest_generation());
        pair.nodes[1].drain();
        (pair.names(1).len(), pair.nodes[1].group.trial.is_some())
    };
    // A block waits for a checkpoint.
    table(&mut pair, &free_one);
    assert_eq!(left(&mut pair), (2, true));
    pair.used(1);
    // The space of one is to be given back, and is being.
    table(&mut pair, &|table| {
        let block = table.blocks.allocate().unwrap();
        table.blocks.give_back(block);
        table.blocks.begin_checkpoint();
        table.blocks.commit_checkpoint(0);
        table.blocks.release(0, Order(0));
    });
    assert_eq!(left(&mut pair), (2, true));
    let group = &mut pair.nodes[1].group;
    let (first, count) = group.volumes.get_mut(&VolumeId(1)).unwrap().table.blocks.take_leaving().unwrap();
    assert_eq!(count, 1);
    assert_eq!(left(&mut pair), (2, true));
    table(&mut pair, &|table| table.blocks.gone(first, 1));
    // The table is to be swept.
    table(&mut pair, &|table| table.keep_snapshot(None));
    assert_eq!(left(&mut pair), (2, true));
    pair.used(1);
    // A block whose record is yet to be applied comes only when there is room.
    let next = pair.nodes[1].group.applied.next();
    table(&mut pair, &|table| {
        let block = table.blocks.allocate().unwrap();
        table.blocks.redirect(block, next);
        table.blocks.free(block);
    });
    assert_eq!(left(&mut pair), (1, true));
    pair.used(1);
    // The trial is spared as well.
    table(&mut pair, &free_one);
    assert_eq!(left(&mut pair), (1, true));
    pair.used(1);
    assert_eq!(left(&mut pair), (1, false));
    // The trial's blocks have gone, and there is nothing else.
    pair.used(1);
    assert!(!pair.nodes[1].group.drop_oldest_generation());
}

/// A pool may have no room for a list of kept blocks, though it has blocks; those that wait for the journal's tail are let go of.
#[test]
fn the_tail_moves_for_a_pool_without_room() {
    let mut pair = Pair::in_step();
    for _ in 0..2 {
        pair.write_at(0, 64 << 10);
        pair.idle();
        pair.settle();
    }
    pair.used(1);
    let waits = |pair: &Pair| pair.nodes[1].group.volumes[&VolumeId(1)].table.blocks.is_waiting();
    assert!(waits(&pair), "no block waits for the tail");
    pair.nodes[1].group.destage.full_since = Some(pair.now.monotonic);
    pair.nodes[1].group.again = true;
    pair.settle();
    assert!(!waits(&pair));
    pair.nodes[1].group.destage.full_since = None;
    pair.finish();
}

#[test]
fn generations_are_kept_for_a_time() {
    let mut pair = Pair::in_step();
    pair.command(1, Command::KeepGenerations { count: 1, seconds: 60 }).unwrap();
    for round in 0..5 {
        pair.now.wall = WallClock((1 + round * 25) * 1_000_000);
        pair.interval(round);
    }
    assert_eq!(pair.names(1), [number(5), number(4), number(3)]);
    pair.command(1, Command::KeepGenerations { count: 2, seconds: 0 }).unwrap();
    assert_eq!(pair.names(1), [number(5), number(4)]);
    for count in [0, 65] {
        assert_eq!(pair.command(1, keep(count)), Err(CommandError::KeepCount(count)));
    }
}

#[test]
fn a_standby_is_promoted_to_an_older_generation() {
    for lost in [false, true] {
        let mut pair = Pair::in_step();
        pair.command(1, keep(4)).unwrap();
        let states: Vec<State> = (0..5).map(|round| pair.interval(round)).collect();
        pair.fill(64 << 10, 8192);
        assert!(pair.promote(PromoteTarget::Generation(Generation(3))));
        assert!(pair.state == states[2]);
        if lost {
            pair.reopen(1);
            pair.pass_to(pair.now.monotonic.after(10_000_000));
        }
        assert!(pair.content(1) == states[2]);
        assert_eq!(pair.names(1), [number(3), number(2)]);
        assert!(pair.generation(1, number(2)) == states[1]);
        pair.fill(0, 4096);
        pair.interval(9);
        assert!(pair.generation(1, number(2)) == states[1] && pair.generation(1, number(3)) == states[2]);
        pair.finish();
    }
}

/// What is overwritten between two restart points must not be missing in the first of them.
#[test]
fn under_the_delayed_policy_each_restart_point_is_what_it_was() {
    let mut pair = Pair::in_step();
    pair.command(1, keep(8)).unwrap();
    pair.command(1, Command::SetPolicy(ApplyPolicy::Delayed)).unwrap();
    let mut states = Vec::new();
    for _ in 0..4 {
        pair.write_at(0, 8192);
        pair.write_at(4096, 8192);
        pair.restart_point();
        states.push(pair.state.clone());
    }
    pair.settle();
    for (name, state) in (1..).zip(&states) {
        assert!(pair.generation(1, number(name)) == *state, "generation {name}");
    }
}

#[test]
fn a_fork_is_kept_until_it_is_dropped() {
    for lost in [false, true] {
        let mut pair = Pair::in_step();
        let kept = pair.interval(0);
        pair.cut();
        pair.fill(0, 12_288);
        pair.fill(128 << 10, 64 << 10);
        let fork = pair.state.clone();
        assert!(pair.promote(PromoteTarget::RestartPoint));
        pair.fill(4096, 4096);
        pair.connect();
        pair.settle();
        assert_eq!(pair.nodes[0].group.pair.role, Role::Fenced);
        pair.command(0, Command::Demote { discard_fork: false }).unwrap();
        if lost {
            pair.reopen(0);
        }
        pair.connect();
        pair.settle();
        pair.finish();
        let name = GenerationId::Fork(Epoch::FIRST);
        assert_eq!(pair.names(0), [name, number(1)]);
        assert!(pair.generation(0, name) == fork && pair.generation(0, number(1)) == kept);
        (2..6).for_each(|round| drop(pair.interval(round)));
        assert!(pair.generation(0, name) == fork, "restart points come and go, the fork stays");
        // It stands in the way of what is older.
        pair.command(0, keep(9)).unwrap();
        pair.command(0, Command::DropGeneration(name)).unwrap();
        assert!(!pair.names(0).contains(&name));
        let expected = CommandError::NotKept { asked: name, kept: pair.names(0) };
        assert_eq!(pair.command(0, Command::DropGeneration(name)), Err(expected));
        pair.finish();
    }
}

#[test]
fn a_demotion_that_waits_need_not() {
    let mut pair = Pair::in_step();
    pair.fork();
    let ids = [1, 2, 3].map(|id| CommandId(1 << 40 | id));
    for (id, discard_fork) in ids.into_iter().zip([false, false, true]) {
        pair.nodes[0].group.handle_command(pair.now, id, Command::Demote { discard_fork });
    }
    pair.settle();
    let replies = ids.map(|id| pair.nodes[0].replies.remove(&id).expect("answered"));
    let expected = [Ok(CommandReply::Done), Err(CommandError::InProgress("demotion")), Ok(CommandReply::Done)];
    assert_eq!(replies, expected);
    pair.finish();
}

#[test]
fn a_promotion_does_not_lose_a_fork_without_force() {
    let mut pair = Pair::in_step();
    pair.fork();
    pair.command(0, Command::Demote { discard_fork: false }).unwrap();
    pair.finish();
    // No restart point has come since: the last one is before the fork.
    pair.cut();
    let promote = |force| Command::Promote { target: PromoteTarget::RestartPoint, force };
    let name = GenerationId::Fork(Epoch::FIRST);
    assert_eq!(pair.command(0, promote(false)), Err(CommandError::ForkInTheWay(name)));
    assert!(matches!(pair.command(0, promote(true)), Ok(CommandReply::Promoted { .. })));
    assert_eq!(pair.names(0), [number(1)]);
}

#[test]
fn a_pool_that_is_full_lets_go_of_the_oldest_generation() {
    let mut pair = Pair::in_step();
    pair.command(1, keep(8)).unwrap();
    let size = pair.nodes[0].group.status(pair.now).volumes[0].size;
    for round in 0..5 {
        for offset in (0..size).step_by(1 << 20) {
            pair.write_at_unchecked(offset, 1 << 20);
            pair.settle();
        }
        pair.restart_point();
        pair.idle();
        pair.settle();
        assert!(pair.nodes[1].group.status(pair.now).stopped.is_none(), "round {round}");
    }
    // There is room for the volume twice.
    let names = pair.names(1);
    assert!(names.len() < 3 && names[0] == number(5), "{names:?}");
    let seen = pair.nodes[0].group.stream.last;
    assert_eq!(pair.nodes[1].group.stream.last, seen);
    pair.finish();
}

/// A pool of the format that did not say which generation its snapshot is.
#[test]
fn the_snapshot_of_a_former_format_is_the_last_restart_point() {
    let mut pair = Pair::in_step();
    let state = pair.interval(0);
    pair.fill(0, 12_288);
    pair.used(1);
    for slot in SLOTS {
        let disks = &mut pair.nodes[1].disks;
        let mut bytes = crate::buffer::AlignedBuffer::new(4096);
        bytes.as_mut_slice().copy_from_slice(&disks.read(POOL, slot, 4096).unwrap());
        let former = bytes.as_mut_slice();
        former[12] = 2;
        former[16..20].fill(0);
        former[272..2072].fill(0);
        let checksum = crc32c::crc32c(former);
        former[16..20].copy_from_slice(&checksum.to_le_bytes());
        disks.write(POOL, slot, bytes.freeze()).unwrap();
        disks.sync(POOL).unwrap();
    }
    pair.reopen(1);
    assert_eq!(pair.names(1), [number(1)]);
    assert!(pair.generation(1, number(1)) == state);
    assert!(pair.promote(PromoteTarget::RestartPoint));
    assert!(pair.state == state);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Restart points of one node, of any block size, through death and loss of power, rules that change and drops.
    #[test]
    fn generations_survive_death_and_loss_of_power(seed in any::<[u8; 32]>()) {
        let mut bench = Bench::new(TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &seed));
        let (mut states, mut next) = (BTreeMap::new(), 100);
        let mut ask = |bench: &mut Bench, command: Command| {
            next += 1;
            bench.group.handle_command(bench.now, CommandId(next), command);
            loop {
                bench.drain();
                if let Some(reply) = bench.replies.remove(&CommandId(next)) {
                    return reply;
                }
                if !bench.step() {
                    bench.now.monotonic = bench.group.poll_timeout().expect("it will be answered");
                    bench.group.handle_timeout(bench.now);
                }
            }
        };
        ask(&mut bench, keep(3)).unwrap();
        for _ in 0..300 {
            match pick(&mut bench.rng, 24) {
                14 => {
                    let state = bench.model.clone();
                    let reply = ask(&mut bench, Command::RestartPoint { label: Name::default() });
                    let Ok(CommandReply::RestartPoint { at, .. }) = reply else { panic!("{reply:?}") };
                    states.insert(at, state);
                }
                15 => {
                    let count = 1 + pick(&mut bench.rng, 6) as u16;
                    ask(&mut bench, keep(count)).unwrap();
                }
                16 => {
                    let kept = bench.group.status(bench.now).generations;
                    if kept.len() > 1 {
                        let which = 1 + pick(&mut bench.rng, kept.len() as u64 - 1) as usize;
                        let dropped = ask(&mut bench, Command::DropGeneration(kept[which].name));
                        let waits = matches!(dropped, Err(CommandError::NotApplied(_) | CommandError::LastRestartPoint(_)));
                        prop_assert!(dropped.is_ok() || waits, "{dropped:?}");
                    }
                }
                17 | 18 => {
                    for kept in bench.group.status(bench.now).generations {
                        prop_assert_ne!(kept.kind, GenerationKind::Fork);
                        // A restart point that was applied meanwhile may have displaced it.
                        let Some(order) = bench.group.find_generation(kept.name) else { continue };
                        bench.group.hold_generation(order);
                        let found = bench.read_area_as(Access::Generation(order));
                        bench.group.release_generation(order);
                        prop_assert!(found == states[&kept.at][..found.len()], "generation {}", kept.name);
                    }
                }
                choice if bench.befalls(choice) => {}
                _ => bench.mutate(),
            }
        }
        bench.check_all();
        ask(&mut bench, keep(1)).unwrap();
        bench.settle();
        bench.check_all();
    }
}

#[test]
fn a_name_is_a_number_or_a_fork() {
    assert_eq!("7".parse(), Ok(number(7)));
    assert_eq!("fork-2.3".parse(), Ok(GenerationId::Fork(Epoch(2 << 32 | 3))));
    for text in ["", "fork-", "fork-2", "fork-2.x", "-1", "7 "] {
        let error = text.parse::<GenerationId>().unwrap_err();
        assert!(std::string::ToString::to_string(&error).contains("such as fork-2.0"), "{text}");
    }
}
