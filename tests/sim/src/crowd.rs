//! Many histories on all cores. Each is played by one thread from its beginning to its end: the simulator keeps nothing
//! outside of it.

use std::{
    panic::resume_unwind,
    sync::{Mutex, PoisonError, mpsc},
    thread,
};

/// How many threads play when nobody says how many.
pub fn jobs() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Works on all items with so many threads, and hands each result to `done` in the calling thread, in the order in which they end.
/// An item is taken when a thread is free for it, so an iterator may end early, by the clock or by a signal.
pub fn each<I: Send, T: Send>(
    jobs: usize,
    items: impl Iterator<Item = I> + Send,
    work: impl Fn(&I) -> T + Sync,
    mut done: impl FnMut(I, T),
) {
    let items = Mutex::new(items);
    let (items, work) = (&items, &work);
    let (results, ended) = mpsc::channel();
    thread::scope(|scope| {
        let worker = |results: mpsc::Sender<(I, T)>| {
            move || loop {
                // Not in the loop's head: the lock would be held while the item is worked on.
                let item = items.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(item) = item else { break };
                let result = work(&item);
                if results.send((item, result)).is_err() {
                    break;
                }
            }
        };
        let threads: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(worker(results.clone()))).collect();
        drop(results);
        for (item, result) in ended {
            done(item, result);
        }
        for thread in threads {
            if let Err(panic) = thread.join() {
                resume_unwind(panic);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn every_item_is_worked_on_once() {
        let mut results = BTreeMap::new();
        each(3, 0..100_u64, |item| item * item, |item, result| assert_eq!(results.insert(item, result), None));
        assert_eq!(results, (0..100).map(|item| (item, item * item)).collect());
    }

    #[test]
    #[should_panic(expected = "seven")]
    fn a_panic_of_a_worker_is_not_lost() {
        each(2, 0..9, |item| assert!(*item != 7, "seven"), |_, ()| {});
    }
}
