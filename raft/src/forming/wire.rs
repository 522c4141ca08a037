//! The forming machine's values as messages between nodes, and back.

use alhambra_proto::peer as wire;

use super::machine::{Answer, Proposal, View, ViewState};
use super::{FORMAT, Plan};

pub(super) fn write_plan(plan: &Plan) -> wire::Plan {
    wire::Plan { peers: plan.peers().to_vec(), expect: u32::try_from(plan.expect()).unwrap_or(u32::MAX) }
}

pub(super) fn read_plan(plan: Option<&wire::Plan>) -> Option<Plan> {
    let plan = plan?;
    Plan::new(usize::try_from(plan.expect).ok()?, &plan.peers, "").ok()
}

pub(super) fn write_proposal(proposal: &Proposal) -> wire::Proposal {
    let members = proposal.members.iter().map(|(id, addr)| wire::Member { id: *id, addr: addr.clone() });
    wire::Proposal { cluster: proposal.cluster.clone(), members: members.collect() }
}

pub(super) fn read_proposal(proposal: &wire::Proposal) -> Proposal {
    let members = proposal.members.iter().map(|member| (member.id, member.addr.clone())).collect();
    Proposal { cluster: proposal.cluster.clone(), members }
}

pub(super) fn write_view(view: &View, nonce: [u8; 16]) -> wire::View {
    use wire::view::State;
    let (state, proposal) = match &view.state {
        ViewState::Free => (State::Free, None),
        ViewState::Collecting(proposal) => (State::Collecting, Some(proposal)),
        ViewState::Promised(proposal) => (State::Promised, Some(proposal)),
        ViewState::Formed(proposal) => (State::Formed, Some(proposal)),
    };
    wire::View {
        format: FORMAT,
        nonce: nonce.to_vec().into(),
        addr: view.addr.clone(),
        plan: Some(write_plan(&view.plan)),
        state: state.into(),
        proposal: proposal.map(write_proposal),
        yields_to: view.yields_to.clone().unwrap_or_default(),
    }
}

/// None for a node that does not know its address yet, and for one of another version.
pub(super) fn read_view(view: &wire::View) -> Option<View> {
    use wire::view::State;
    if view.format != FORMAT || view.addr.is_empty() {
        return None;
    }
    let proposal = view.proposal.as_ref().map(read_proposal);
    let state = match view.state() {
        State::Free => ViewState::Free,
        State::Collecting => ViewState::Collecting(proposal?),
        State::Promised => ViewState::Promised(proposal?),
        State::Formed => ViewState::Formed(proposal?),
        State::Unknown => return None,
    };
    let yields_to = Some(view.yields_to.clone()).filter(|addr| !addr.is_empty());
    Some(View { addr: view.addr.clone(), plan: read_plan(view.plan.as_ref())?, state, yields_to })
}

pub(super) fn write_answer(answer: &Answer) -> wire::PromiseReply {
    use wire::promise_reply::Answer as Wire;
    let (answer, cluster) = match answer {
        Answer::Granted => (Wire::Granted, ""),
        Answer::Busy => (Wire::Busy, ""),
        Answer::Taken(cluster) => (Wire::Taken, cluster.as_str()),
        Answer::Formed(cluster) => (Wire::Formed, cluster.as_str()),
        Answer::DifferentPlan => (Wire::DifferentPlan, ""),
        Answer::NotMe => (Wire::NotMe, ""),
    };
    wire::PromiseReply { answer: answer.into(), cluster: cluster.to_owned() }
}

pub(super) fn read_answer(reply: &wire::PromiseReply) -> Option<Answer> {
    use wire::promise_reply::Answer as Wire;
    Some(match reply.answer() {
        Wire::Granted => Answer::Granted,
        Wire::Busy => Answer::Busy,
        Wire::Taken => Answer::Taken(reply.cluster.clone()),
        Wire::Formed => Answer::Formed(reply.cluster.clone()),
        Wire::DifferentPlan => Answer::DifferentPlan,
        Wire::NotMe => Answer::NotMe,
        Wire::Unknown => return None,
    })
}
