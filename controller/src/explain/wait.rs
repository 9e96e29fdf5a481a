//! What requests and attachments wait for. Each text goes after "waits for".

use cleat_core::{
    AttachmentWait, BoundCause, Condition, ExportFence, Fence, FenceStep, HolderWait, ListDoubt, NodeId, Wait,
};

use super::node::who;
use super::{nodes, rungs, trouble, when};

/// What a request waits for.
pub(crate) fn wait(wait: &Wait) -> String {
    let last =
        |last: &Option<String>| last.as_ref().map(|last| format!(" (last: {last})")).unwrap_or_default();
    match wait {
        Wait::FirstList { since, last: error } => format!(
            "the RDS to list its volumes and who may connect to them, which it has not since the controller began at \
             {}{}",
            when(*since),
            last(error)
        ),
        Wait::ListOf { volume, lacked_for_ms, last: error } => format!(
            "the RDS to list volume {volume}, or to go on lacking it for {} s: a list may lack a volume for a moment{}",
            lacked_for_ms / 1000,
            last(error)
        ),
        Wait::ReadableList { volume, problem } => {
            format!("the RDS to say who may connect to volume {volume}: {problem}")
        }
        Wait::Reports { volume, nodes: unheard, doubt } => format!(
            "the agent of {} to report what it holds of volume {volume}: {}",
            nodes(unheard),
            list_doubt(*doubt)
        ),
        Wait::ListDrainBound { volume, until, doubt } => format!(
            "the drain bound of the target, until {}: volume {volume}: {}",
            when(*until),
            list_doubt(*doubt)
        ),
        Wait::Inventory { node } => format!("the inventory of node {node}"),
        Wait::Room { node, limit } => format!(
            "one of the {limit} volumes of node {node}, which may have no more (--max-volumes), to be detached there"
        ),
        Wait::Leaving { node, vm, wait } => format!(
            "node {node} to be detached, where VM {}/{} does not need it any more since its migration is over: {}",
            vm.namespace,
            vm.name,
            match wait {
                Some(wait) => format!("it waits for {}", attachment_wait(node, wait)),
                None => "no Unpublish has come yet".to_owned(),
            }
        ),
        Wait::Ticket { node, ticket, holder, until } => {
            let of = if holder.is_empty() { String::new() } else { format!(" of {holder}") };
            match until {
                Some(until) => format!(
                    "ticket {ticket}{of} to let go of the volume on node {node}, which is cut off from it at {}",
                    when(*until)
                ),
                None => format!(
                    "ticket {ticket}{of} to be done with the volume on node {node}: it is not interrupted"
                ),
            }
        }
        Wait::Holders(holders) => holders.iter().map(holder).collect::<Vec<_>>().join("; and for "),
    }
}

fn holder(HolderWait { node, wait }: &HolderWait) -> String {
    match wait {
        Some(wait) => attachment_wait(node, wait),
        None => format!("an Unpublish of node {node}: it was granted the volume since"),
    }
}

/// What the attachment on a node waits for.
pub(crate) fn attachment_wait(node: &NodeId, wait: &AttachmentWait) -> String {
    let mut text = condition(node, &wait.condition);
    if let Some(last) = &wait.last {
        text.push_str(&format!(" (last: {})", trouble(last)));
    }
    text
}

fn condition(node: &NodeId, condition: &Condition) -> String {
    const DETACH: &str = "to detach and prove that nothing of it is left";
    match condition {
        Condition::DeviceBack { node, unready } => format!("node {node} to have its device back ({unready})"),
        Condition::CallAboutStray { node } => {
            format!(
                "a call about node {node}, which holds it without a grant: publish it there, or unpublish it"
            )
        }
        Condition::RepeatedPublish { node } => {
            format!("a Publish on node {node}: it was being granted when the controller started")
        }
        Condition::FencedNodeClean { volume, node, since } => format!(
            "the agent of node {node} to show that it holds none of volume {volume}: it was fenced by taking the export \
             off alone, at {}, which stays off until then",
            when(*since)
        ),
        Condition::ExportOn { volume, fences } => {
            let fence = |ExportFence { node, rung, since }: &ExportFence| {
                format!("the fence of node {node} (rung {}, since {})", rung.name(), when(*since))
            };
            let whose = match &fences[..] {
                [] => "a fence that is over".to_owned(),
                fences => fences.iter().map(fence).collect::<Vec<_>>().join(" and "),
            };
            format!("the RDS to bring the export of volume {volume} back, which was taken off for {whose}")
        }
        Condition::HostAllowed => format!("the RDS to allow the host of node {node}"),
        Condition::Ready(agent) => who(agent, "to connect and prove that it can use the device"),
        Condition::GrantAnswered => {
            format!("the RDS's answer to the grant of node {node}, which is being taken back")
        }
        Condition::Detached { agent, fence: None } => who(agent, DETACH),
        Condition::Detached { agent, fence: Some(fence) } => {
            format!("{}; and for its fence: {}", who(agent, DETACH), progress(fence))
        }
        Condition::Drained { node, fence } => {
            format!("what node {node} wrote to be drained: {}", progress(fence))
        }
        Condition::DrainBound { node, until, why } => format!(
            "the drain bound of the target, until {}: node {node} {}, so writes may still be on their way",
            when(*until),
            match why {
                BoundCause::MayHaveBroken =>
                    "holds none of it, but a connection may have broken under its user",
                BoundCause::DeclaredGone => "was declared gone",
                BoundCause::CutWithoutDrain => {
                    "was cut off by a target that is not known to wait for received writes"
                }
            }
        ),
        Condition::HostDenied => format!("the RDS to take the host of node {node} off its list"),
    }
}

/// A fence's rung and step, and what was tried before.
fn progress(fence: &Fence) -> String {
    let step = match fence.step {
        FenceStep::Deny => "the RDS to take the host off its list",
        FenceStep::Preempt => "another node to preempt the registration",
        FenceStep::SetSecret => "the RDS to put another secret in force",
        FenceStep::Rekey => "the other nodes to take over the new secret",
        FenceStep::Hide => "the RDS to take the export off",
        FenceStep::Refused => {
            return format!("all fencing methods failed, the controller will retry: {}", rungs(&fence.tried));
        }
    };
    let mut text = format!("rung {}, {step}", fence.rung.name());
    if !fence.tried.is_empty() {
        text.push_str(&format!(", after {}", rungs(&fence.tried)));
    }
    text
}

fn list_doubt(doubt: ListDoubt) -> &'static str {
    match doubt {
        ListDoubt::FoundOff => "its export was found off, and no record says why",
        ListDoubt::FoundOn => "by its record its export is off, and it was found on",
        ListDoubt::NoList => "there is no record of it, and the RDS keeps no list of hosts",
        ListDoubt::Desired => {
            "a VolumeAttachment says that it is attached there, and no record says who that is"
        }
        ListDoubt::Unclear => {
            "there is no record of it, and a VolumeAttachment of a node does not say which volume it is about"
        }
    }
}
