//! The address table against a plain model (docs/model.md): what each block holds now and in each generation, whatever is written,
//! kept, let go of and taken back, and through crashes that lead back to the last checkpoint and do everything since again.

use super::{
    plan::{News, Plan},
    tests::{Disks, pick},
    *,
};
use crate::{
    disk::DiskAction,
    overlay::Piece,
    table::{self, Entry, Table},
    units::VOLUME_SIZE_MIN,
};
use proptest::{prelude::*, test_runner::TestRng};
extern crate std;
use alloc::{string::String, vec};

const BLOCKS: u32 = 4;
const GRANULES: usize = 16;
const POOL: MediumId = MediumId::Pool(VolumeId(1));
const GROUP: GroupId = GroupId([7; 16]);

type Content = [u64; GRANULES];

/// What the table means: the whole of it.
#[derive(Clone, Default)]
struct Model {
    now: BTreeMap<u32, Content>,
    kept: BTreeMap<Order, BTreeMap<u32, Content>>,
}

#[derive(Clone)]
enum Act {
    /// These granules of a block get a value.
    Write {
        block: u32,
        from: usize,
        to: usize,
        value: u64,
    },
    Zero(u32),
    Keep(Order),
    RollBack(Order),
}

struct Bench {
    disks: Disks,
    spec: VolumeSpec,
    table: Table,
    /// What physical blocks hold. Writes in place outlive a crash.
    pool: BTreeMap<u32, Content>,
    model: Model,
    /// Since the last checkpoint began that counts.
    done: Vec<Act>,
    /// How much has happened.
    step: u64,
    /// What the model held at each restart point, also of those that were let go of.
    ever: BTreeMap<Order, BTreeMap<u32, Content>>,
}

impl Bench {
    fn new() -> Self {
        let mut disks = Disks::default();
        let block = 64 << 10;
        disks.set_size(POOL, pool_size_for(VOLUME_SIZE_MIN, block));
        let spec = VolumeSpec {
            id: VolumeId(1),
            name: "v".parse().unwrap(),
            size: VOLUME_SIZE_MIN,
            logical_block_size: 512,
            table_block_size: block,
            pool: MediumUuid([2; 16]),
            pool_path: String::new(),
        };
        format_pool(&mut disks, GROUP, &spec).unwrap();
        let table = table::load(&mut disks, GROUP, &spec).unwrap();
        let (pool, model, done, ever) = (BTreeMap::new(), Model::default(), vec![], BTreeMap::new());
        Self { disks, spec, table, pool, model, done, step: 0, ever }
    }

    /// What a block with this entry holds.
    fn content(&self, entry: Entry) -> Content {
        core::array::from_fn(|granule| {
            let block = if entry.mask >> granule & 1 == 1 { entry.latest } else { entry.snapshot };
            self.pool.get(&block).map_or(0, |content| content[granule])
        })
    }

    /// As destaging does it.
    fn destage(&mut self, block: u32, news: News, new: Content) {
        assert!(self.table.reserve_records(1));
        let entry = self.table.settle(block);
        let before = self.content(entry);
        let mut plan = Plan::new(VolumeId(1), &self.table, block, entry, news);
        if plan.needs_new {
            plan.after.latest = self.table.blocks.allocate().expect("room");
        }
        if let Some(fold) = plan.fold {
            let from = self.pool.get(&fold.from).copied().unwrap_or_default();
            let to = self.pool.entry(fold.to).or_default();
            (0..GRANULES)
                .filter(|granule| fold.mask >> granule & 1 == 1)
                .for_each(|granule| to[granule] = from[granule]);
        }
        let written = self.pool.entry(plan.after.latest).or_default();
        for granule in (0..GRANULES).filter(|granule| plan.write_mask >> granule & 1 == 1) {
            let is_base = plan.base_mask >> granule & 1 == 1;
            written[granule] = if is_base { before[granule] } else { new[granule] };
        }
        self.table.set_entry(block, plan.after);
        self.table.blocks.free(plan.freed);
        match plan.fold {
            Some(fold) if fold.to == plan.entry.latest => self.table.let_go(block, &plan.entry),
            Some(fold) => self.table.blocks.free(fold.from),
            None => {}
        }
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Write { block, from, to, value } => {
                let start = u64::from(block) << 16;
                let piece =
                    Piece { offset: start + from as u64 * 4096, end: start + to as u64 * 4096, order: Order(1) };
                let mut new = Content::default();
                new[from..to].fill(value);
                self.destage(block, News::Pieces(vec![piece]), new);
            }
            Act::Zero(block) => self.destage(block, News::Zeroes, Content::default()),
            Act::Keep(order) => self.table.keep_snapshot(Some(order)),
            Act::RollBack(order) => assert!(self.table.roll_back(order)),
        }
    }

    fn act_and_note(&mut self, act: Act) {
        self.act(&act);
        let model = &mut self.model;
        match act {
            Act::Write { block, from, to, value } => model.now.entry(block).or_default()[from..to].fill(value),
            Act::Zero(block) => drop(model.now.remove(&block)),
            Act::Keep(order) => {
                model.kept.insert(order, model.now.clone());
                self.ever.insert(order, model.now.clone());
            }
            Act::RollBack(order) => {
                model.now.clone_from(&model.kept[&order]);
                model.kept.retain(|kept, _| *kept <= order);
            }
        }
        self.done.push(act);
    }

    /// The table changes while it is being written; what is written is what it was.
    fn checkpoint(&mut self, rng: &mut TestRng) {
        let mut checkpoint = self.table.begin_checkpoint(Order(0));
        let before = self.done.len();
        let crashes = pick(rng, 4) == 0;
        loop {
            for _ in 0..pick(rng, 4) {
                self.step(rng);
            }
            // Some pages are there, and the superblock is not.
            if crashes && pick(rng, 3) == 0 {
                return self.crash();
            }
            let Some((offset, bytes)) = self.table.next_page() else { break };
            self.disks.carry_out(POOL, DiskAction::Write { offset, pieces: vec![bytes] }, 0).unwrap();
        }
        if crashes {
            return self.crash();
        }
        let (offset, superblock) = self.table.superblock(&mut checkpoint);
        self.disks.carry_out(POOL, DiskAction::Write { offset, pieces: vec![superblock] }, 0).unwrap();
        self.done.drain(..before);
        // It counts before the table knows.
        for _ in 0..pick(rng, 4) {
            self.step(rng);
        }
        if pick(rng, 8) == 0 {
            return self.crash();
        }
        self.table.commit_checkpoint(checkpoint, 0);
        self.table.blocks.release(0, Order(u64::MAX));
        while let Some((first, count)) = self.table.blocks.take_leaving() {
            self.table.blocks.gone(first, count);
        }
        // What was set free is used next.
        self.table.blocks.rewind();
    }

    /// Anything that happens to a table between two checkpoints.
    fn step(&mut self, rng: &mut TestRng) {
        self.step += 1;
        let (step, block) = (self.step, pick(rng, BLOCKS.into()) as u32);
        match pick(rng, 17) {
            0 => self.act_and_note(Act::Zero(block)),
            1 | 2 => self.act_and_note(Act::Keep(Order(step))),
            3 => self.roll_back(rng),
            4 => self.let_go(rng),
            5 => self.table.sweep_pages(1 + pick(rng, 3) as u32),
            6 => self.check(),
            _ => {
                let from = pick(rng, GRANULES as u64) as usize;
                let to = from + 1 + pick(rng, (GRANULES - from) as u64) as usize;
                self.act_and_note(Act::Write { block, from, to, value: step });
            }
        }
    }

    /// Lets go of some generations.
    fn let_go(&mut self, rng: &mut TestRng) {
        let count = pick(rng, 5) as usize;
        let kept: Vec<Order> = self.model.kept.keys().rev().take(count).copied().collect();
        // A roll-back that a crash repeats must find its target.
        if !self.done.iter().any(|act| matches!(act, Act::RollBack(_))) {
            self.table.retain_generations(|order| kept.contains(&order));
            self.model.kept.retain(|order, _| kept.contains(order));
        }
    }

    /// Takes it back to a generation, if there is one.
    fn roll_back(&mut self, rng: &mut TestRng) {
        let kept: Vec<Order> = self.model.kept.keys().copied().collect();
        if !kept.is_empty() && pick(rng, 2) == 0 {
            self.act_and_note(Act::RollBack(kept[pick(rng, kept.len() as u64) as usize]));
        }
    }

    fn crash(&mut self) {
        self.table = table::load(&mut self.disks, GROUP, &self.spec).unwrap();
        // What is kept may have been let go of since; it is what it was all the same, now and at each step.
        for act in self.done.clone() {
            self.act(&act);
        }
        self.check();
        let kept: Vec<Order> = self.model.kept.keys().copied().collect();
        self.table.retain_generations(|order| kept.contains(&order));
    }

    fn check(&self) {
        for block in 0..BLOCKS {
            let now = self.model.now.get(&block).copied().unwrap_or_default();
            assert_eq!(self.content(self.table.entry(block)), now, "block {block}");
            for order in self.table.kept_generations() {
                let entry = self.table.entry_in(order, block).expect("it is kept");
                let expected = self.ever[&order].get(&block).copied().unwrap_or_default();
                assert_eq!(self.content(entry), expected, "block {block} of generation {order}");
            }
        }
        let (expected, kept): (Vec<_>, Vec<_>) =
            (self.model.kept.keys().copied().collect(), self.table.kept_generations().collect());
        assert!(expected.iter().all(|order| kept.contains(order)), "{expected:?} are to be kept, {kept:?} are");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn the_table_does_what_the_model_says(seed: [u8; 32]) {
        let mut rng = TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &seed);
        let mut bench = Bench::new();
        for _ in 0..160 {
            match pick(&mut rng, 20) {
                0 => bench.checkpoint(&mut rng),
                1 => bench.crash(),
                _ => bench.step(&mut rng),
            }
        }
        bench.check();
        // Nothing leaks: without generations only what is stored is used, and the list of kept blocks.
        let last = bench.model.kept.keys().next_back().copied();
        bench.table.retain_generations(|order| Some(order) == last);
        bench.table.keep_snapshot(None);
        bench.table.retain_generations(|_| false);
        bench.model.kept.clear();
        for _ in 0..4 {
            bench.table.sweep_pages(u32::MAX);
        }
        let stored = (0..BLOCKS).map(|block| bench.table.entry(block)).map(|entry| u32::from(entry.latest != 0) + u32::from(entry.snapshot != 0));
        let stored: u32 = stored.sum();
        prop_assert_eq!(bench.table.blocks.used_count(), stored + bench.table.extent_blocks());
        bench.check();
    }
}
