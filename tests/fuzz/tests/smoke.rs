//! Every target over its corpus, then over a fixed count of mutations of it. A mutation that fails is written to
//! `artifacts/`, to be looked at with `cargo run -p fuzz --bin TARGET -- FILE` and kept in the corpus when it is mended.

use fuzz::{
    TARGETS, find,
    mutator::{Random, mutated},
};
use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
};

const SEED: u64 = 1;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The files of a folder, in the order of their names.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    files.sort();
    files
}

fn smoke(name: &str) {
    let target = find(name);
    let kept = files(&folder("corpus").join(name));
    assert!(!kept.is_empty(), "the corpus of {name} is empty");
    let inputs: Vec<Vec<u8>> = kept.iter().map(|path| fs::read(path).expect("a readable file")).collect();
    for (path, input) in kept.iter().zip(&inputs) {
        println!("{}", path.display());
        (target.run)(input);
    }
    let mut random = Random::new(SEED);
    for _ in 0..target.mutation_count {
        let input = mutated(&inputs, &mut random);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(&input))) {
            let path = folder("artifacts").join(format!("{name}-smoke"));
            fs::create_dir_all(folder("artifacts")).expect("a folder for what fails");
            fs::write(&path, &input).expect("a file for what fails");
            println!("the input is kept in {}", path.display());
            resume_unwind(panic);
        }
    }
}

macro_rules! smoke {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                smoke(stringify!($name));
            }
        )*

        const TESTED: &[&str] = &[$(stringify!($name)),*];
    };
}

smoke! {
    record batch journal_superblock pool_superblock table_page kept_page messages
    packet heartbeat stream
    session open group
    nbd_handshake nbd_request node_message api_request config identity
}

#[test]
fn every_target_has_a_program_a_corpus_and_a_test() {
    let names = |folder: PathBuf| -> BTreeSet<String> {
        let stem =
            |path: &PathBuf| path.file_stem().and_then(|stem| stem.to_str()).expect("our names are text").to_owned();
        files(&folder).iter().map(stem).collect()
    };
    let targets: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(names(folder("fuzz_targets")), targets);
    assert_eq!(names(folder("corpus")), targets);
    assert_eq!(TESTED.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(), targets);
}

/// A corpus is for everyone who fetches the repository: few files, and short ones.
#[test]
fn corpora_stay_small() {
    for target in TARGETS {
        let files = files(&folder("corpus").join(target.name));
        let size: u64 = files.iter().map(|path| fs::metadata(path).expect("a readable file").len()).sum();
        assert!(files.len() <= 40 && size <= 64 << 10, "{}: {} files, {size} bytes", target.name, files.len());
    }
}
