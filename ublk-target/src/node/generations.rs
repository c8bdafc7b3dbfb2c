//! Generations that this node keeps, and trials of them.

use super::{Answer, Node, command};
use crate::{actor::GroupActor, api::ApiError};
use holdfast::{
    command::{Command, CommandReply, GenerationId},
    pair::Role,
    request::Access,
};
use serde_json::json;

impl Node {
    pub(super) async fn keep_generations(&self, group: &str, count: Option<u16>, seconds: Option<u32>) -> Answer {
        let actor = self.group(group)?;
        if count.is_some() || seconds.is_some() {
            let rule = actor.status();
            let (count, seconds) = (count.unwrap_or(rule.keep_count), seconds.unwrap_or(rule.keep_seconds));
            command(&actor, Command::KeepGenerations { count, seconds }).await?;
        }
        let rule = actor.status();
        let (count, seconds) = (rule.keep_count, rule.keep_seconds);
        let time = if seconds == 0 { String::new() } else { format!(", and all that are at most {seconds} s older") };
        let done = format!("Group {group} keeps {count} restart point(s) on this node{time}");
        Ok(json!({ "done": done, "keep_count": count, "keep_seconds": seconds }))
    }

    pub(super) async fn drop_generation(&self, group: &str, generation: GenerationId) -> Answer {
        let actor = self.group(group)?;
        command(&actor, Command::DropGeneration(generation)).await?;
        Ok(json!({ "done": format!("Generation {generation} of group {group} is dropped on this node") }))
    }

    pub(super) async fn begin_trial(&self, group: &str, generation: Option<GenerationId>) -> Answer {
        let actor = self.group(group)?;
        let clients = if actor.status().trial.is_none() { trial_clients(&actor).await } else { 0 };
        if clients > 0 {
            return Err(ApiError::new(format!(
                "{clients} NBD client(s) of an earlier trial of group {group} are still connected; disconnect them first"
            )));
        }
        let begun = actor.command(Command::BeginTrial { generation }).await;
        let begun = begun.map_err(|error| ApiError::new(format!("Group {group}: {error}")))?;
        let CommandReply::Trial { generation, at } = begun else {
            return Err(ApiError::new(format!("Group {group}: no trial came to be")));
        };
        let exports: Vec<String> =
            actor.label().volumes.iter().map(|spec| format!("{group}/{}@trial", spec.name)).collect();
        let places: Vec<String> = exports.iter().filter_map(|export| Some(self.nbd_place(export)?.0)).collect();
        let role = actor.label().role;
        let pair = if role == Role::Secondary { "; the pair goes on" } else { "" };
        Ok(json!({
            "done": format!(
                "A writable copy of generation {generation} of group {group} is served at {}{pair}. End it, and throw away \
                 what was written to it, with: ublk-admin failover {group} --end",
                if places.is_empty() { "no address, for [nbd] has none in the configuration".into() } else { places.join(" and ") }
            ),
            "generation": generation,
            "at": at,
            "exports": exports,
        }))
    }

    pub(super) async fn end_trial(&self, group: &str) -> Answer {
        let actor = self.group(group)?;
        let clients = trial_clients(&actor).await;
        if clients > 0 {
            return Err(ApiError::new(format!(
                "The trial of group {group} is in use by {clients} NBD client(s); disconnect them first"
            )));
        }
        command(&actor, Command::EndTrial).await?;
        Ok(json!({ "done": format!("Nothing is left of the trial of group {group}") }))
    }
}

async fn trial_clients(actor: &GroupActor) -> usize {
    actor.clients.count_staying(|_, access| access == Access::Trial).await
}
