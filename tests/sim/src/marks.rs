//! What a run has reached: every state, fault, event and refusal is counted by name, so that what is never reached shows.

use crate::{operator::first_word, world::World};
use holdfast::{
    output::Event,
    request::{Reply, RequestError},
};

impl World {
    pub(crate) fn mark_event(&mut self, node: usize, group: usize, event: &Event) {
        self.trace.mark(&format!("event: {}", first_word(event)));
        let Some(view) = self.slot(node, group).map(|slot| slot.view) else { return };
        match event {
            Event::PairChanged { state } => {
                self.trace.mark(&format!("pair: {} to {}", view.pair.name(), state.name()));
            }
            Event::RoleChanged { role, .. } => self.trace.mark(&format!("role: {} to {role}", view.role)),
            _ => {}
        }
    }

    pub(crate) fn mark_request_error(&mut self, result: &Result<Reply, RequestError>) {
        if let Err(error) = result {
            self.trace.mark(&format!("request: {}", first_word(error)));
        }
    }
}
