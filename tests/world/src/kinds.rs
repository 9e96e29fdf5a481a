//! Everything that can happen, by name; and what sort of thing each is.

use cleat_core::VmStage;

use crate::names::{N, P, V};
use crate::tickets::T;

/// How the RDS answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It has done it.
    Done,
    /// It refuses.
    Refused,
    /// It has done it, and the answer is lost.
    DoneUnheard,
    /// It has not done it, and no answer comes.
    UndoneUnheard,
    /// It has done it at one portal, and refuses the rest.
    HalfRefused,
    /// It has done it at one portal, and the answer is lost.
    HalfUnheard,
}

/// Which records are not there, or not as they were, when the next leader reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// All of them.
    All,
    /// One volume's.
    Volume(V),
    /// What was written after they were copied.
    Later,
}

/// Something that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A caller wants a volume on a node.
    Publish(V, N),
    /// A caller wants it off a node.
    Unpublish(V, N),
    /// A caller wants it off all nodes.
    UnpublishAll(V),
    /// The RDS answers a leader's oldest request about a volume.
    Rds(usize, V, Answer),
    /// The agent gets the next directive, and does it.
    ToAgent(N),
    /// The agent gets the next directive: it attaches, and something is wrong with the device.
    ToAgentMishap(N),
    /// A leader hears the next thing that an agent said.
    ToController(N),
    /// A leader's oldest record of a volume that is not durable becomes so, and what waited for it goes out.
    Durable(usize, V),
    /// A directive of an older stream is carried out now.
    LateDirective(N, usize),
    /// The last directive is carried out once more.
    EchoDirective(N),
    /// Something that was said on an older stream is heard now.
    LateEvent(N),
    /// The last answer is said once more, on the newest stream.
    EchoAnswer(N),
    /// The agent opens a stream to a leader.
    Connect(N, usize),
    /// The stream breaks.
    Drop(N),
    /// The node loses its connections to the target, and gets none.
    Cut(N),
    /// The network is mended; kernels connect again as far as the target lets them.
    Mend(N),
    /// One volume's connection to one portal breaks.
    PathDies(V, N, P),
    /// A kernel's own attempt to connect again succeeds.
    PathReturns(V, N, P),
    /// The kernel gives dead connections up.
    KernelGivesUp(V, N),
    /// Somebody connects a volume by hand.
    Stray(V, N),
    /// Somebody opens the device.
    Open(V, N),
    /// And closes it.
    Close(V, N),
    /// Deletions hang in the kernel.
    Wedge(N),
    /// And come to their end.
    Unwedge(N),
    /// The node loses power.
    PowerOff(N),
    /// It boots.
    PowerOn(N),
    /// The newest leader dies, or goes on without knowing of its successor; what it had asked was done or not.
    TakeOver {
        /// It goes on.
        old_lives: bool,
        /// What it had asked of the RDS is done.
        rds_done: bool,
    },
    /// The newest leader will die after so many more effects.
    DiesAfter(u8),
    /// The target starts anew.
    TargetRestart,
    /// An agent registers again what the target has forgotten.
    Reassert(V, N),
    /// A person wants a node cut off from a volume.
    Fence(V, N),
    /// A person says, and is right, that a node is gone.
    DeclareGone(N),
    /// A caller wants a volume deleted.
    Delete(V),
    /// The RDS answers a DELETE.
    Deleted(V, Answer),
    /// A DELETE that nobody waits for any more lands.
    DeletesLate(V),
    /// The RDS's lists lack a volume from now on.
    Lacks(V),
    /// And have it again.
    HasAgain(V),
    /// A request that nobody waits for any more is carried out.
    LandsLate(V),
    /// The newest leader dies, and the next one's clock is so many quanta ahead of the world's.
    TakeOverAt(i8),
    /// Somebody copies the records.
    CopyRecords,
    /// Records are lost, and another leader begins; the one before dies, or goes on without knowing of it.
    StartWithout {
        /// Which.
        lost: Lost,
        /// The one before goes on.
        old_lives: bool,
    },
    /// The newest leader gets the RDS's lists.
    Lists,
    /// A VolumeAttachment goes, and nobody calls.
    Vanishes(V, N),
    /// Nobody can say any more which volume its VolumeAttachment is about.
    LosesName(V, N),
    /// The newest leader's shell finds that nobody asks for a volume on a node any more, and detaches it.
    NobodyAsks(V, N),
    /// A person marks a node as out of service.
    OutOfService(N),
    /// KubeVirt reports a migration of a volume's VM from one node to another, or (`None`) that there is none.
    Reported(V, Option<(N, N)>, VmStage),
    /// A holder wishes for a volume by a ticket of this kind, on a node or (`None`) anywhere; or has changed that wish.
    TicketComes(V, T, Option<N>),
    /// Its holder has ended it.
    TicketGoes(V, T),
    /// Its holder does not renew it any more.
    TicketSilent(V, T),
    /// The newest leader's shell hands it a wish that the one before knew.
    TicketSeen(V, T),
    /// Time passes.
    Tick,
    /// So many milliseconds pass. Only walks take it: there is no end of those.
    Pass(u16),
}

/// What sort of thing an action is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Something on its way arrives.
    Message,
    /// Something works again.
    Mending,
    /// A caller or a person asks, or KubeVirt reports.
    Caller,
    /// Time passes.
    Clock,
    /// Something goes wrong.
    Fault,
}

impl Action {
    /// How many kinds there are.
    pub const KINDS: usize = 58;
    /// What KubeVirt reports.
    pub const OF_KUBEVIRT: usize = 46;
    /// The first of those that happen in a cluster alone.
    pub const OF_CLUSTER: usize = 47;
    /// The first of those of tickets, which follow those of a cluster.
    pub const OF_TICKETS: usize = 54;

    /// The kind, as a number below [`Action::KINDS`].
    #[must_use]
    pub fn kind(self) -> usize {
        match self {
            Self::Rds(_, _, Answer::Done) => 0,
            Self::ToAgent(_) => 1,
            Self::ToController(_) => 2,
            Self::LateEvent(_) => 3,
            Self::Connect(..) => 4,
            Self::Mend(_) => 5,
            Self::PathReturns(..) => 6,
            Self::Close(..) => 7,
            Self::Unwedge(_) => 8,
            Self::PowerOn(_) => 9,
            Self::Reassert(..) => 10,
            Self::Publish(..) => 11,
            Self::Unpublish(..) => 12,
            Self::UnpublishAll(_) => 13,
            Self::Fence(..) => 14,
            Self::DeclareGone(_) => 15,
            Self::Tick | Self::Pass(_) => 16,
            Self::Rds(_, _, Answer::Refused) => 17,
            Self::Rds(_, _, Answer::DoneUnheard) => 18,
            Self::Rds(_, _, Answer::UndoneUnheard) => 19,
            Self::ToAgentMishap(_) => 20,
            Self::LateDirective(..) => 21,
            Self::EchoDirective(_) => 22,
            Self::EchoAnswer(_) => 23,
            Self::Drop(_) => 24,
            Self::Cut(_) => 25,
            Self::PathDies(..) => 26,
            Self::KernelGivesUp(..) => 27,
            Self::Open(..) => 28,
            Self::Wedge(_) => 29,
            Self::PowerOff(_) => 30,
            Self::TakeOver { .. } => 31,
            Self::DiesAfter(_) => 32,
            Self::TargetRestart => 33,
            Self::Stray(..) => 34,
            Self::Deleted(_, Answer::Done) => 37,
            Self::HasAgain(_) => 38,
            Self::DeletesLate(_) => 39,
            Self::Delete(_) => 40,
            Self::Lacks(_) => 41,
            Self::Deleted(..) => 42,
            Self::TakeOverAt(_) => 43,
            Self::LandsLate(_) => 44,
            Self::Durable(..) => 45,
            Self::Reported(..) => Self::OF_KUBEVIRT,
            Self::Lists => 47,
            Self::NobodyAsks(..) => 48,
            Self::OutOfService(_) => 49,
            Self::CopyRecords => 50,
            Self::StartWithout { .. } => 51,
            Self::Vanishes(..) => 52,
            Self::LosesName(..) => 53,
            Self::TicketSeen(..) => Self::OF_TICKETS,
            Self::TicketComes(..) => 55,
            Self::TicketGoes(..) => 56,
            Self::TicketSilent(..) => 57,
            Self::Rds(_, _, Answer::HalfRefused) => 35,
            Self::Rds(_, _, Answer::HalfUnheard) => 36,
        }
    }

    /// What sort of thing a kind is.
    #[must_use]
    pub fn manner(kind: usize) -> Manner {
        match kind {
            0..=3 | 37 | 45 | 47 | Self::OF_TICKETS => Manner::Message,
            4..=10 | 38 | 39 | 44 | 48 => Manner::Mending,
            11..=15 | 40 | Self::OF_KUBEVIRT | 49 | 50 | 55 | 56 => Manner::Caller,
            16 => Manner::Clock,
            _ => Manner::Fault,
        }
    }
}
