//! What a seed is about: the pair, its lines and media, and which features and faults there are at all. Each seed turns
//! some on and the others off, so that none hides another (swarm testing: Groce et al., 2012).

use link_model::{BurstLoss, LineSettings, Probability, QueueLimit, Random};
use replicator::Mode;
use std::{fmt, str::FromStr, time::Duration};

macro_rules! features {
    ($($(#[$what:meta])* $name:ident,)*) => {
        /// What may happen in a seed. The names are those of the command line.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Feature {
            $($(#[$what])* $name,)*
        }

        impl Feature {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

features! {
    /// Daemons die.
    Kills,
    /// Power is lost.
    PowerLoss,
    /// Links are cut, both ways.
    Cuts,
    /// Links are cut, one way.
    HalfCuts,
    /// Packets are lost, doubled, changed, delayed.
    BadLines,
    /// Lines carry little.
    SlowLines,
    /// Clocks run at different speeds, and the time of day jumps.
    BadClocks,
    /// Media are slow now and then.
    SlowMedia,
    /// Media fail for a moment.
    MediaErrors,
    /// File systems are full for a while.
    FullMedia,
    /// What was written is changed later, or goes elsewhere, or nowhere.
    Rot,
    /// Daemons stand still.
    Stalls,
    /// The standby is promoted.
    Promotions,
    /// Roles are switched in good order.
    Switches,
    /// The pair is suspended and resumed.
    Suspensions,
    /// What both hold is compared.
    Verifications,
    /// Writes wait for the standby now and then.
    Levels,
    /// The standby applies at restart points only, now and then.
    Policies,
    /// A primary answers only with its standby's promise.
    Leases,
    /// A standby promotes itself.
    Takeovers,
    /// The nodes hear each other on a third path.
    Heartbeats,
    /// Restart points are kept, read and dropped.
    Generations,
    /// Generations are tried out.
    Trials,
    /// Volumes and journals grow.
    Growth,
    /// Pairs are ended and made anew.
    NewPairs,
    /// Commands that make no sense.
    Nonsense,
    /// Writes come in bursts that fill the journal.
    Bursts,
    /// Machines lose power at the worst moments.
    Ambushes,
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, letter) in format!("{self:?}").char_indices() {
            let dash = if index > 0 && letter.is_uppercase() { "-" } else { "" };
            write!(f, "{dash}{}", letter.to_ascii_lowercase())?;
        }
        Ok(())
    }
}

impl FromStr for Feature {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().copied().find(|feature| feature.to_string() == text);
        found.ok_or_else(|| {
            let names: Vec<String> = Self::ALL.iter().map(Self::to_string).collect();
            format!("\"{text}\" is no feature; there are {}", names.join(", "))
        })
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Config {
    /// What there is.
    pub features: Vec<Feature>,
    /// How long it goes, in microseconds.
    pub micros: u64,
    /// How many groups the nodes share.
    pub group_count: usize,
    /// How many volumes each has, with the size of their table's blocks.
    pub table_blocks: Vec<u32>,
    /// How many bytes at the start of each volume are used.
    pub area: u64,
    /// Pools have hardly more blocks than their volumes.
    pub small_pools: bool,
    /// How many links there are.
    pub link_count: usize,
    /// How the session spreads blocks over them.
    pub mode: Mode,
    /// What the links do.
    pub lines: [LineSettings; 2],
    /// How long an operation of a medium takes, in microseconds.
    pub disk_micros: u64,
    /// How long between two requests, in microseconds.
    pub think_micros: u64,
    /// How long between two things that befall the pair, in microseconds.
    pub calm_micros: u64,
    /// Somebody looks at everything after every event.
    pub watched: bool,
}

impl Config {
    /// What this seed is about.
    pub fn new(seed: u64) -> Self {
        let mut chance = Random::new(seed ^ 0xC0_4F16);
        // A third of the seeds has few features, the others half of them.
        let share = if chance.below(3) == 0 { 20 } else { 50 };
        let mut features: Vec<Feature> = Feature::ALL.iter().copied().filter(|_| chance.below(100) < share).collect();
        if features.contains(&Feature::Takeovers) && !features.contains(&Feature::Leases) {
            features.push(Feature::Leases);
        }
        let has = |feature| features.contains(&feature);
        let lines = [0, 1].map(|_| line(&mut chance, has(Feature::BadLines), has(Feature::SlowLines)));
        let modes = [Mode::Split, Mode::Stripe, Mode::Mirror, Mode::Auto];
        let volume_count = 1 + chance.below(3);
        // To look costs much more than what is looked at: less happens there.
        let watched = chance.below(8) == 0;
        let (second_count, areas) = if watched { (20, [16, 32, 64]) } else { (120, [64, 256, 512]) };
        Self {
            watched,
            micros: (second_count / 6 + chance.below(second_count)) * 1_000_000,
            group_count: 1 + usize::from(chance.below(4) == 0),
            table_blocks: (0..volume_count)
                .map(|_| [16 << 10, 64 << 10, 256 << 10][chance.below(3) as usize])
                .collect(),
            area: areas[chance.below(3) as usize] << 10,
            small_pools: chance.below(4) == 0,
            link_count: 1 + usize::from(chance.below(4) != 0),
            mode: modes[chance.below(4) as usize],
            lines,
            disk_micros: [50, 200, 2_000, 10_000][chance.below(4) as usize],
            think_micros: [3_000, 20_000, 100_000][chance.below(3) as usize],
            calm_micros: [300_000, 2_000_000, 8_000_000][chance.below(3) as usize],
            features,
        }
    }

    /// One volume on good media and one good link, and nothing that happens by itself.
    pub(crate) fn quiet(table_block: u32, area: u64) -> Self {
        let line = || LineSettings { delay: Duration::from_millis(1), ..LineSettings::default() };
        Self {
            features: Vec::new(),
            micros: 0,
            group_count: 1,
            table_blocks: vec![table_block],
            area,
            small_pools: false,
            link_count: 1,
            mode: Mode::Split,
            lines: [line(), line()],
            disk_micros: 200,
            think_micros: 1_000,
            calm_micros: 1_000,
            watched: false,
        }
    }

    /// The same without these features, as far as they are not steps of the script.
    pub fn without(&self, features: &[Feature]) -> Self {
        let mut config = self.clone();
        config.features.retain(|feature| !features.contains(feature));
        let is_bad = config.has(Feature::BadLines);
        let is_slow = config.has(Feature::SlowLines);
        for line in &mut config.lines {
            let former = line.clone();
            *line =
                if is_bad { former.clone() } else { LineSettings { delay: former.delay, ..LineSettings::default() } };
            if is_slow {
                (line.rate_bits, line.queue) = (former.rate_bits, former.queue);
            } else {
                (line.rate_bits, line.queue) = (None, LineSettings::default().queue);
            }
        }
        config
    }

    /// Whether there is such a thing.
    pub fn has(&self, feature: Feature) -> bool {
        self.features.contains(&feature)
    }
}

fn line(chance: &mut Random, bad: bool, slow: bool) -> LineSettings {
    let mut percent = |most: u64| Probability::from_millionths((chance.below(most * 10_000)) as u32);
    let mut settings = LineSettings::default();
    if bad {
        settings.loss = percent(30);
        settings.duplicate = percent(50);
        settings.reorder = percent(10);
        settings.corrupt = percent(5);
        if chance.below(3) == 0 {
            settings.burst = Some(BurstLoss {
                begin: Probability::from_millionths(chance.below(20_000) as u32),
                end: Probability::from_millionths(50_000 + chance.below(200_000) as u32),
                loss: Probability::ALWAYS,
            });
        }
        settings.reorder_by = Duration::from_micros(chance.below(3_000_000));
        settings.jitter = Duration::from_micros(chance.below(20_000));
    }
    settings.delay = Duration::from_micros([200, 5_000, 40_000, 150_000][chance.below(4) as usize]);
    if slow {
        settings.rate_bits = Some([2_000_000, 10_000_000, 100_000_000][chance.below(3) as usize]);
        settings.queue = QueueLimit::Time(Duration::from_millis(100));
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_have_names_that_can_be_read_back() {
        for feature in Feature::ALL {
            assert_eq!(feature.to_string().parse(), Ok(*feature));
        }
        assert_eq!(Feature::PowerLoss.to_string(), "power-loss");
        assert!("floods".parse::<Feature>().unwrap_err().contains("kills, power-loss"));
    }

    #[test]
    fn lines_are_good_without_bad_ones() {
        let all = (1..200).map(Config::new);
        let bad = all.filter(|config| config.has(Feature::BadLines) && config.has(Feature::SlowLines));
        for config in bad.take(10) {
            let good = config.without(&[Feature::BadLines]);
            for (line, former) in good.lines.iter().zip(&config.lines) {
                assert_eq!(
                    (line.loss, line.delay, line.rate_bits),
                    (Probability::NEVER, former.delay, former.rate_bits)
                );
            }
            assert_eq!(config.without(&[Feature::SlowLines]).lines[0].rate_bits, None);
        }
    }
}
