//! What the audit trail can say: one number and one name for each event, for good.

macro_rules! events {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal;)*) => {
        /// What happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Event {
            $($(#[$doc])* $variant = $number,)*
        }

        impl Event {
            /// Every event.
            pub const ALL: &[Event] = &[$(Event::$variant,)*];

            /// The event with this number; none for one that this build does not know.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Event::$variant),)*
                    _ => None,
                }
            }

            /// Its name in output.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Event::$variant => $name,)*
                }
            }
        }
    };
}

events! {
    /// The vault opened; its keys may be used from here on.
    Started = 1, "vault.started";
    /// It ended because its callers left. Signed.
    Stopped = 2, "vault.stopped";
    /// The operator locked it. Signed.
    Locked = 3, "vault.locked";
    /// Nothing happened; a signature over what did. Signed.
    Checkpoint = 4, "audit.checkpoint";
    /// Last record of a segment. Signed.
    SegmentClosed = 5, "audit.segment_closed";
    /// At start: this many slots of a commit that was torn by a crash were cleared; none of it had been answered.
    TailCleared = 6, "audit.tail_cleared";
    /// The operator began the trail anew because what was there is lost: a gap that stays.
    BegunAnew = 7, "audit.begun_anew";
    /// So many refusals or reports in a row were over their share and have no record of their own.
    NotListed = 8, "audit.not_listed";
    /// First record of a segment.
    SegmentBegun = 9, "audit.segment_begun";
    /// A card.
    CardSigned = 16, "card.signed";
    /// A request to a directory.
    HttpSigned = 17, "http.signed";
    /// Certificates of this node's static keys.
    StaticsSigned = 18, "statics.signed";
    /// A new prekey.
    PrekeyMade = 19, "prekey.made";
    /// At the beginning of a new identity's trail: whom it goes on for, or whose succession it took back.
    IdentityTaken = 21, "identity.taken";
    /// The identity's word for this successor is taken back: by its own hand, with the key of this trail. Recorded by the first
    /// vault that has the word, before anybody is shown it.
    SuccessionTakenBack = 22, "succession.taken_back";
    /// The key of one module's records was handed to `noded`.
    StoreKeyGiven = 20, "store_key.given";
    /// A module's description of a method was taken.
    MethodRegistered = 23, "method.registered";
    /// A registered method was retired.
    MethodRetired = 24, "method.retired";
    /// The registered methods were asked for.
    MethodsListed = 25, "method.listed";
    /// What a module stated in its own domain was signed.
    ModuleSigned = 26, "module.signed";
    /// The key of one module's seals was handed to `noded`.
    SealKeyGiven = 27, "seal_key.given";
    /// A link was offered.
    LinkIssued = 32, "link.issued";
    /// An offer was opened for the policy to look at.
    OfferInspected = 33, "offer.inspected";
    /// An offer was taken.
    LinkAccepted = 34, "link.accepted";
    /// A link was ended.
    LinkRevoked = 35, "link.revoked";
    /// A link's row was opened for its request keys.
    LinkOpened = 36, "link.opened";
    /// A peer's match proof was checked.
    MatchChecked = 37, "link.match_checked";
    /// A link was offered that takes the place of one with the same peer.
    RenewalIssued = 38, "link.renewal_issued";
    /// Such an offer was taken.
    RenewalAccepted = 39, "link.renewal_accepted";
    /// Which links are held was asked for.
    LinksListed = 40, "link.listed";
    /// A handshake was begun.
    HandshakeBegun = 48, "handshake.begun";
    /// A handshake was answered.
    HandshakeAnswered = 49, "handshake.answered";
    /// FINALIZE was made, the session's secrets handed out: the initiator's side.
    HandshakeFinished = 50, "handshake.finished";
    /// FINALIZE was taken, the session's secrets handed out: the responder's side.
    HandshakeCompleted = 51, "handshake.completed";
    /// A half-open handshake was given up.
    HandshakeAbandoned = 52, "handshake.abandoned";
    /// This node's lasting word that it ended a handshake with a peer (`audited` mode).
    SessionSigned = 53, "session.signed";
    /// Direct contact was begun, without a link.
    DirectBegun = 56, "direct.begun";
    /// Direct contact was answered.
    DirectAnswered = 57, "direct.answered";
    /// FINALIZE of a direct contact was made, its secrets handed out: the initiator's side.
    DirectFinished = 58, "direct.finished";
    /// FINALIZE of a direct contact was taken, its secrets handed out: the responder's side.
    DirectCompleted = 59, "direct.completed";
    /// A caller sent what is no request, or asked out of its role; its connection ended.
    Misbehaved = 64, "caller.misbehaved";
    /// Who the node is was asked for.
    Described = 65, "vault.described";
    /// Reported by `noded`: a session's record did not authenticate.
    SessionForged = 80, "node.session_forged";
    /// Reported by `noded`: requests or handshakes over their rate were turned away.
    Flooded = 81, "node.flooded";
    /// Reported by `noded`: a directory said what its own signatures or receipts contradict.
    DirectoryLied = 82, "node.directory_lied";
    /// Reported by `noded`: offers of links were left, by the policy for incoming ones or by what stands with their peer.
    OfferRefused = 84, "node.offer_refused";
    /// Reported by the front: it turned away so many calls that are not in the contract, and connections that speak another
    /// protocol; none of them reached the vault.
    CallRefused = 83, "front.call_refused";
    /// Reported by the supervisor: a process ended by itself.
    ProcessDied = 96, "process.died";
    /// Reported by the supervisor: a process tried a system call outside its filter.
    FilterBroken = 97, "process.filter";
    /// Reported by the supervisor: a process was not caged as its manifest says.
    LayerOff = 98, "process.layer";
    /// Reported by the supervisor: a file of this trail is not the one it opened.
    TrailTouched = 99, "audit.file_changed";
    /// Reported by the supervisor: the operator took a module's package in.
    ModuleInstalled = 100, "module.installed";
    /// Reported by the supervisor: the operator granted a module what it may do.
    ModuleApproved = 101, "module.approved";
    /// Reported by the supervisor: the operator let a module run.
    ModuleEnabled = 102, "module.enabled";
    /// Reported by the supervisor: the operator ended a module.
    ModuleDisabled = 103, "module.disabled";
    /// Reported by the supervisor: the operator removed a module.
    ModuleRemoved = 104, "module.removed";
    /// Reported by the supervisor: whose packages are taken was changed.
    ModuleTrust = 105, "module.trust";
    /// Reported by the supervisor: such a change was refused.
    ModuleRefused = 106, "module.refused";
}

impl Event {
    /// Its number in records.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// Whether a signature follows it.
    #[must_use]
    pub const fn is_signed(self) -> bool {
        matches!(self, Event::Stopped | Event::Locked | Event::Checkpoint | Event::SegmentClosed)
    }

    /// Whether `noded`, or the front before it, may report it.
    #[must_use]
    pub const fn is_of_node(self) -> bool {
        matches!(
            self,
            Event::SessionForged | Event::Flooded | Event::DirectoryLied | Event::OfferRefused | Event::CallRefused
        )
    }

    /// Whether the supervisor may report it.
    #[must_use]
    pub const fn is_of_supervisor(self) -> bool {
        matches!(
            self,
            Event::ProcessDied
                | Event::FilterBroken
                | Event::LayerOff
                | Event::TrailTouched
                | Event::ModuleInstalled
                | Event::ModuleApproved
                | Event::ModuleEnabled
                | Event::ModuleDisabled
                | Event::ModuleRemoved
                | Event::ModuleTrust
                | Event::ModuleRefused
        )
    }
}
