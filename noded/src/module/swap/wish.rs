//! What is wished of a module's life, who waits for that, and what is shown of it. Wishes come from the operator's requests and the supervisor's
//! word; the driver takes them one at a time, and puts what it does on the board.

use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use super::record::Record;
use crate::module::Wanted;

/// What is wanted of a module.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Want {
    /// Its program as it is now.
    Again,
    /// This version, which was installed.
    To(Wanted),
    /// Nothing but to hear whether the swap to this version has succeeded.
    Await(String),
    /// The last version that finished its probation, with the rows of before if asked.
    Back { snapshot: bool },
}

/// A wish, and who waits for its end.
pub(in crate::module) struct Wish {
    pub(in crate::module) want: Want,
    pub(in crate::module) done: Option<Done>,
}

pub(in crate::module) type Done = oneshot::Sender<Result<(), String>>;

/// What is shown of a module's generations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown {
    pub(crate) record: Record,
    /// What is done to it now, in a word.
    pub(crate) doing: Option<&'static str>,
}

/// What is shown of one module, shared with whoever asks.
pub(in crate::module) type Board = Arc<Mutex<Shown>>;
