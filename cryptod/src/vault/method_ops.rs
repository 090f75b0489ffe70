//! Operations on methods of modules, and what modules sign and seal with: each module in its own domain.

use openred_proto::checked::module_word::{ModuleWord, is_module};
use openred_proto::id::{MethodId, UnixMillis};
use openred_proto::vault::Reply;

use super::Unlocked;
use crate::error::{Error, Result};

impl Unlocked {
    pub(super) fn register_method(&mut self, now: UnixMillis, module: &str, description: Vec<u8>) -> Result<Reply> {
        let mut methods = std::mem::take(&mut self.state.node.methods);
        let before = methods.clone();
        let epoch = self.state.next_sequence(now);
        let taken = methods.register(module, description, epoch, |place| self.state.uses(place));
        if methods != before {
            self.state.touch_node();
        }
        self.state.node.methods = methods;
        taken.map(Reply::MethodRegistered)
    }

    pub(super) fn retire_method(&mut self, method: &MethodId) -> Result<Reply> {
        self.state.node.methods.retire(method)?;
        self.state.touch_node();
        Ok(Reply::Done)
    }

    pub(super) fn list_methods(&self) -> Reply {
        Reply::Methods(self.state.node.methods.listed())
    }

    /// What is signed is built here of the fields; of the body there is only its hash.
    pub(super) fn sign_module(&self, word: &ModuleWord) -> Result<Reply> {
        // The peers' own check is the last word on the fields.
        if ModuleWord::decode(&word.encode())? != *word {
            return Err(Error::MisuseNotAllowed);
        }
        Ok(Reply::ModuleSigned(self.keyring.identity.sign_module(word)))
    }

    pub(super) fn seal_key(&self, module: &str) -> Result<Reply> {
        if !is_module(module) {
            return Err(Error::MisuseNotAllowed);
        }
        Ok(Reply::StoreKey(self.keyring.seal_key(module)))
    }
}
