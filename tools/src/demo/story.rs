//! The steps of the demo, in the order in which a user sees them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::Value;

use super::display::{Display, size};
use super::image::{self, BLOCK_BYTES, Image};
use super::node::{LinkEnd, Node, free_port};
use super::processes::Workplace;
use super::report::{self, Facts, StreamCounters};
use super::transfer::{compare, read_all, write_ahead};
use crate::emulator::{Emulator, EmulatorSettings, LineSettings, Probability, Statistics};
use crate::nbd_client::NbdClient;

/// The group and its volume.
pub const GROUP: &str = "demo";
/// The volume in it.
pub const VOLUME: &str = "disk";
/// The name of its NBD export.
pub const EXPORT: &str = "demo/disk";

const VOLUME_BYTES: u64 = 1 << 30;
/// There and back is twice as long.
const ONE_WAY: Duration = Duration::from_millis(10);

/// What the user chose.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// Leave the nodes running until Ctrl-C.
    pub keep: bool,
    /// How many bytes of crate sources go into the image at most.
    pub content_bytes_max: u64,
    /// Decides what the links lose.
    pub seed: u64,
    /// Where `holdfastd` and `ublk-admin` are.
    pub programs: PathBuf,
}

/// What came of it, beside every promise having been kept.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// What the two lines did until the primary died.
    pub lines: [Statistics; 2],
    /// What the stream did.
    pub stream: StreamCounters,
    /// Records after the restart point that had reached the standby and were taken back.
    pub taken_back_count: u64,
}

/// Tells the whole story.
///
/// # Errors
/// When any step fails or any promise is broken; processes and folder are gone then.
pub fn run(options: &DemoOptions) -> anyhow::Result<Outcome> {
    let workplace = Workplace::new("holdfast-demo")?;
    println!("Holdfast: a disk that survives the loss of its site. Working in {}", workplace.folder().display());
    let mut stage = Stage::set(&workplace, options)?;
    let told = stage.play();
    if told.is_err() {
        for node in [&stage.north, &stage.south] {
            let words = workplace.log_tail(&node.name);
            eprintln!("\nThe last words of {}:\n{words}", node.name);
        }
    }
    let outcome = told?;
    if options.keep {
        // The former primary comes back and finds that it is none any more.
        stage.north.start(&workplace)?;
        await_role(&stage.north, "fenced")?;
        report::print_commands(&stage.north, &stage.south);
        println!("\nThe nodes and links run until Ctrl-C.");
        loop {
            std::thread::park();
        }
    }
    report::print_by_hand();
    Ok(outcome)
}

struct Stage<'a> {
    workplace: &'a Workplace,
    options: &'a DemoOptions,
    display: Display,
    north: Node,
    south: Node,
    links: [Emulator; 2],
}

impl<'a> Stage<'a> {
    fn set(workplace: &'a Workplace, options: &'a DemoOptions) -> anyhow::Result<Self> {
        let north = Node::new("north", workplace.folder(), &options.programs)?;
        let south = Node::new("south", workplace.folder(), &options.programs)?;
        let mut ends = [Vec::new(), Vec::new()];
        let mut link = |name: &str, loss_percent, seed| -> anyhow::Result<Emulator> {
            let (a, b) = (free_port()?, free_port()?);
            let mut settings = EmulatorSettings::local(
                LineSettings {
                    delay: ONE_WAY,
                    loss: Probability::from_percent(loss_percent),
                    ..LineSettings::default()
                },
                seed,
            );
            settings.a = Some(a);
            settings.b = Some(b);
            let emulator = Emulator::start(settings)?;
            for (side, local, remote) in [(0, a, emulator.a_side()), (1, b, emulator.b_side())] {
                let end = LinkEnd { name: name.to_owned(), local, remote };
                ends[side as usize].push(end);
            }
            Ok(emulator)
        };
        let links = [link("first", 1, options.seed)?, link("second", 3, options.seed.wrapping_add(1))?];
        north.configure_alone()?;
        south.configure_alone()?;
        let (north_key, south_key) = (north.key()?, south.key()?);
        north.configure("south", &south_key, &ends[0])?;
        south.configure("north", &north_key, &ends[1])?;
        Ok(Self { workplace, options, display: Display::new(), north, south, links })
    }

    fn play(&mut self) -> anyhow::Result<Outcome> {
        let image = self.build_image()?;
        self.start_nodes()?;
        self.create_volume()?;
        self.write_image(&image)?;
        self.declare_restart_point(&image)?;
        let scribbled_bytes = self.scribble(&image)?;
        let (primary, standby) = (self.north.ask(&["status", GROUP])?, self.south.ask(&["status", GROUP])?);
        let stream = report::stream_counters(&primary, &standby);
        let lines = [self.links[0].statistics(), self.links[1].statistics()];
        self.kill_primary()?;
        let taken_back_count = self.promote()?;
        let copy = self.read_back(&image)?;
        self.compare(&image, &copy)?;
        let outcome = Outcome { lines, stream, taken_back_count };
        report::print(&Facts { image: &image, scribbled_bytes, outcome, display: &self.display });
        Ok(outcome)
    }

    fn build_image(&mut self) -> anyhow::Result<Image> {
        let folder = self.workplace.folder().to_owned();
        let content = self.options.content_bytes_max;
        self.display.step("Make a 1 GiB ext4 image of our docs and sources", |_| {
            let image = image::build(&folder, VOLUME_BYTES, content)?;
            let used = size(image.used_blocks.len() as u64 * u64::from(BLOCK_BYTES));
            let told = format!("{} files, {used} in use", image.files_count);
            Ok((image, told))
        })
    }

    fn start_nodes(&mut self) -> anyhow::Result<()> {
        let (workplace, north, south) = (self.workplace, &self.north, &self.south);
        self.display.step("Start two nodes with own keys and media", |_| {
            south.start(workplace)?;
            north.start(workplace)?;
            Ok(((), "two links, 20 ms there and back, 1 % and 3 % loss".to_owned()))
        })
    }

    fn create_volume(&mut self) -> anyhow::Result<()> {
        let north = &self.north;
        self.display.step("Create a volume and pair it with the standby", |_| {
            north.ask(&["group", "create", GROUP])?;
            north.ask(&["volume", "create", GROUP, VOLUME, "--size", "1GiB"])?;
            north.ask(&["pair", "create", GROUP, "--peer", "south", "--wait"])?;
            Ok(((), format!("exported as {EXPORT} on {}", north.nbd_path().display())))
        })
    }

    fn write_image(&mut self, image: &Image) -> anyhow::Result<()> {
        let north = &self.north;
        self.display.step("Write the image block by block over NBD", |progress| {
            let mut client = NbdClient::connect_unix(&north.nbd_path(), EXPORT)?;
            ensure!(client.size() == image.size, "The volume has {} bytes, not {}", client.size(), image.size);
            let source = File::open(&image.path)?;
            let total = image.used_blocks.len();
            progress.expect_bytes(total as u64 * u64::from(BLOCK_BYTES));
            for &offset in &image.used_blocks {
                let mut block = vec![0; BLOCK_BYTES as usize];
                source.read_exact_at(&mut block, offset)?;
                write_ahead(&mut client, offset, &block, progress)?;
            }
            client.complete_all()?;
            client.flush()?;
            Ok(((), size(total as u64 * u64::from(BLOCK_BYTES))))
        })
    }

    /// The standby is still receiving when this begins: the second link is cut when half of the image has crossed, and
    /// comes back when three quarters have.
    fn declare_restart_point(&mut self, image: &Image) -> anyhow::Result<()> {
        let (north, links) = (&self.north, &self.links);
        let bytes = image.used_blocks.len() as u64 * u64::from(BLOCK_BYTES);
        let done = AtomicBool::new(false);
        self.display.step("Declare a restart point, wait until the standby has it", |progress| {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    if await_carried(links, bytes / 2, &done) {
                        links[1].cut();
                        progress.note("Half-way: the second link is cut");
                        await_carried(links, bytes * 3 / 4, &done);
                        links[1].heal();
                        progress.note("The second link is back");
                    }
                });
                let label = ["--label", "image-complete", "--wait"];
                let declared = north.ask(&[&["restart-point", GROUP][..], &label].concat());
                done.store(true, Ordering::Relaxed);
                declared
            })?;
            Ok(((), String::new()))
        })
    }

    /// Writes over the image; nothing of it may be seen after the promotion.
    fn scribble(&mut self, image: &Image) -> anyhow::Result<u64> {
        let (north, south) = (&self.north, &self.south);
        self.display.step("Go on writing, over the image, after the restart point", |progress| {
            let mut client = NbdClient::connect_unix(&north.nbd_path(), EXPORT)?;
            let block = vec![0xdd; BLOCK_BYTES as usize];
            let targets = image.used_blocks.iter().step_by(8).take(256);
            let bytes = targets.len() as u64 * u64::from(BLOCK_BYTES);
            progress.expect_bytes(bytes);
            let count = targets.len() as u64;
            for &offset in targets {
                write_ahead(&mut client, offset, &block, progress)?;
            }
            client.complete_all()?;
            client.flush()?;
            // Killed now, the primary would take all of it to its grave: the standby must have something to take back.
            await_records_past_restart_point(south, count / 2)?;
            Ok((bytes, format!("{}, half of it has reached the standby", size(bytes))))
        })
    }

    fn kill_primary(&mut self) -> anyhow::Result<()> {
        let (workplace, north) = (self.workplace, &self.north);
        self.display.step("Kill the primary (kill -9)", |_| {
            workplace.kill(&north.name)?;
            Ok(((), String::new()))
        })
    }

    fn promote(&mut self) -> anyhow::Result<u64> {
        let south = &self.south;
        self.display.step("Promote the standby to the restart point", |_| {
            let promoted = promote_when_silent(south)?;
            let count = report::find(&promoted, "dropped_record_count").and_then(Value::as_u64).unwrap_or(0);
            ensure!(count > 0, "The standby took nothing back, though it had more than the restart point");
            Ok((count, format!("{count} records after it taken back")))
        })
    }

    fn read_back(&mut self, image: &Image) -> anyhow::Result<PathBuf> {
        let copy = self.workplace.folder().join("copy.ext4");
        let south = &self.south;
        self.display.step("Read the whole volume back from the standby", |progress| {
            let mut client = NbdClient::connect_unix(&south.nbd_path(), EXPORT)?;
            ensure!(!client.is_read_only(), "The new primary takes no writes");
            progress.expect_bytes(image.size);
            read_all(&mut client, image.size, &copy, progress)?;
            Ok((copy, size(image.size)))
        })
    }

    fn compare(&mut self, image: &Image, copy: &Path) -> anyhow::Result<()> {
        self.display.step("Compare byte for byte with what was written", |progress| {
            progress.expect_bytes(image.size);
            compare(&image.path, copy, progress)?;
            Ok(((), "equal".to_owned()))
        })?;
        self.display.step("Check the file system (e2fsck -fn)", |_| {
            let told = image::check(copy)?;
            Ok(((), told.rsplit_once(": ").map_or(told.clone(), |(_, facts)| facts.to_owned())))
        })
    }
}

/// Waits until the links together have carried so many bytes towards the standby; false when all was done before.
fn await_carried(links: &[Emulator; 2], bytes: u64, done: &AtomicBool) -> bool {
    // No line is silent for long, so the end is noticed soon.
    links[0].wait_until(Duration::from_secs(600), |first| {
        let carried = first.a_to_b.taken_bytes + links[1].statistics().a_to_b.taken_bytes;
        carried >= bytes || done.load(Ordering::Relaxed)
    });
    !done.load(Ordering::Relaxed)
}

/// Waits until the standby has so many records after its restart point.
fn await_records_past_restart_point(standby: &Node, count: u64) -> anyhow::Result<()> {
    const LIMIT: Duration = Duration::from_secs(60);
    let start = Instant::now();
    loop {
        let status = standby.ask(&["status", GROUP])?;
        let number = |path| status.pointer(path).and_then(Value::as_u64).unwrap_or(0);
        let (head, point) = (number("/head/seq"), number("/restart_point/at/seq"));
        if head >= point + count {
            return Ok(());
        }
        ensure!(
            start.elapsed() < LIMIT,
            "After {LIMIT:?} the standby has {head} records, not the {count} after {point} that it should have"
        );
    }
}

/// Promotes; asks again while the standby still takes the primary for alive, as an administrator would.
fn promote_when_silent(standby: &Node) -> anyhow::Result<Value> {
    const LIMIT: Duration = Duration::from_secs(20);
    let start = Instant::now();
    loop {
        match standby.ask(&["promote", GROUP]) {
            Err(refused) if refused.to_string().contains("alive and connected") && start.elapsed() < LIMIT => {}
            answer => return answer,
        }
    }
}

/// Waits until a node has a role.
fn await_role(node: &Node, role: &str) -> anyhow::Result<()> {
    const LIMIT: Duration = Duration::from_secs(30);
    let start = Instant::now();
    while node.ask(&["status", GROUP])?.pointer("/role").and_then(Value::as_str) != Some(role) {
        ensure!(start.elapsed() < LIMIT, "{} is not {role} after {LIMIT:?}", node.name);
    }
    Ok(())
}
