//! A client that knows what it was told.

use anyhow::{Context, ensure};
use std::collections::BTreeMap;
use tools::nbd_client::{NbdClient, NbdRequest};

/// Bytes of a block of the model.
pub const BLOCK: u64 = 4096;

/// What each block of a volume may hold.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The value of the newest answered write, then those that were sent and not answered.
    blocks: BTreeMap<u64, Vec<u64>>,
    /// Every write by its value: its block, and the first value that was sent after it was answered.
    history: BTreeMap<u64, (u64, Option<u64>)>,
    next: u64,
    state: u64,
}

/// The content of a block with a value; 0 is a hole.
fn content(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(BLOCK as usize / 8)
}

impl Model {
    /// Nothing written. `seed` decides what is written where.
    pub fn new(seed: u64) -> Self {
        Self { blocks: BTreeMap::new(), history: BTreeMap::new(), next: 1, state: seed | 1 }
    }

    fn random(&mut self, limit: u64) -> u64 {
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.state >> 33) % limit
    }

    /// Writes `count` random blocks of the first `area` blocks, many in flight. An error leaves what was in flight
    /// undecided: either value may be there.
    pub fn write(&mut self, client: &mut NbdClient, count: u64, area: u64) -> anyhow::Result<()> {
        let mut pending: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for _ in 0..count {
            let (block, value) = (self.random(area), self.next);
            self.next += 1;
            // Two writes of one block in flight have no order.
            while pending.values().any(|(other, _)| *other == block) || pending.len() >= 16 {
                self.complete(client, &mut pending)?;
            }
            self.blocks.entry(block).or_insert_with(|| vec![0]).push(value);
            self.history.insert(value, (block, None));
            let data = content(value);
            let durable = value % 7 == 0;
            let cookie = client.submit(NbdRequest::Write { offset: block * BLOCK, data: &data, durable })?;
            pending.insert(cookie, (block, value));
        }
        while !pending.is_empty() {
            self.complete(client, &mut pending)?;
        }
        Ok(())
    }

    fn complete(&mut self, client: &mut NbdClient, pending: &mut BTreeMap<u64, (u64, u64)>) -> anyhow::Result<()> {
        let done = client.complete()?;
        let (block, value) = pending.remove(&done.cookie).context("an answer to something never asked")?;
        done.result?;
        self.blocks.insert(block, vec![value]);
        self.history.insert(value, (block, Some(self.next)));
        Ok(())
    }

    /// Reads every block that was ever written: each holds a value that it may hold, which is then the only one.
    pub fn check(&mut self, client: &mut NbdClient) -> anyhow::Result<()> {
        for (block, possible) in &mut self.blocks {
            let data = client.read(block * BLOCK, BLOCK as u32)?;
            let found = possible.iter().copied().find(|value| content(*value) == data);
            let shown = data.first_chunk().map(|word| u64::from_le_bytes(*word));
            let found = found.with_context(|| format!("block {block} holds {shown:?}, not one of {possible:?}"))?;
            *possible = vec![found];
        }
        Ok(())
    }

    /// Reads a standby: it holds a state that the primary may have been in. A write that is there was sent when others had
    /// been answered; all those are there too, or newer ones in their places. Returns the newest write's value.
    pub fn check_prefix(&self, client: &mut NbdClient, area: u64) -> anyhow::Result<u64> {
        let mut shown = BTreeMap::new();
        for block in 0..area {
            let data = client.read(block * BLOCK, BLOCK as u32)?;
            let value = data.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
            ensure!(data == content(value), "block {block} is torn");
            let written = value == 0 || self.history.get(&value).is_some_and(|(place, _)| *place == block);
            ensure!(written, "block {block} holds {value}, which was never written there");
            shown.insert(block, value);
        }
        let newest = shown.values().copied().max().unwrap_or_default();
        for (value, (block, answered)) in &self.history {
            let needed = answered.is_some_and(|next| next <= newest);
            let found = shown.get(block).copied().unwrap_or_default();
            ensure!(
                !needed || found >= *value,
                "block {block} holds {found}: write {value} is missing, though write {newest}, which was sent later, is there"
            );
        }
        Ok(newest)
    }

    /// Reads the first `area` blocks: they are exactly as they were.
    pub fn check_exactly(&self, client: &mut NbdClient, area: u64) -> anyhow::Result<()> {
        for block in 0..area {
            let data = client.read(block * BLOCK, BLOCK as u32)?;
            let possible = self.blocks.get(&block).cloned().unwrap_or_else(|| vec![0]);
            let shown = data.first_chunk().map(|word| u64::from_le_bytes(*word));
            ensure!(
                possible.iter().any(|value| content(*value) == data),
                "block {block} holds {shown:?}, not {possible:?}"
            );
        }
        Ok(())
    }
}
