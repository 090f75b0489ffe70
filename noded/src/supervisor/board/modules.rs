//! The modules' processes on the board: the one that is called, under the module's name, and, while it is swapped, the next one.

use openred_policy::Role;

use super::{Board, Cage, Entry, Inner};

impl Board {
    /// The entry of a module; each that was ever started has one, and there are as many as the supervisor knows.
    fn module<'a>(inner: &'a mut Inner, module: &str, now: u64) -> &'a mut Entry {
        let name = format!("module {module}");
        let place = match inner.modules.iter().position(|entry| entry.name == name) {
            Some(place) => place,
            None => {
                inner.modules.push(Entry::new(Role::Module, name, now));
                inner.modules.len() - 1
            }
        };
        &mut inner.modules[place]
    }

    /// Notes a module whose cage is as it must be.
    pub(crate) fn module_caged(&self, module: &str, cage: Cage) {
        Self::module(&mut self.inner(), module, 0).cage = Some(cage);
    }

    /// A module's next generation has taken the place of the one before.
    pub(crate) fn module_replaced(&self, module: &str, next: &str) {
        let (name, next) = (format!("module {module}"), format!("module {next}"));
        let mut inner = self.inner();
        if !inner.modules.iter().any(|entry| entry.name == next) {
            return;
        }
        inner.modules.retain(|entry| entry.name != name);
        for entry in inner.modules.iter_mut().filter(|entry| entry.name == next) {
            entry.name.clone_from(&name);
        }
    }

    /// A generation that did not get its place has gone.
    pub(crate) fn module_gone(&self, module: &str) {
        let name = format!("module {module}");
        self.inner().modules.retain(|entry| entry.name != name);
    }

    /// Notes a change of a module's state.
    pub(crate) fn module_state(&self, module: &str, state: &'static str, now: u64) {
        let mut inner = self.inner();
        let entry = Self::module(&mut inner, module, now);
        entry.state = state;
        entry.since = now;
    }

    /// Notes a module's end; whether it comes back is `noded`'s to say.
    pub(crate) fn module_ended(&self, module: &str, how: &str, wanted: bool, now: u64) {
        let mut inner = self.inner();
        let entry = Self::module(&mut inner, module, now);
        entry.cage = None;
        entry.state = "down";
        entry.since = now;
        if !wanted {
            how.clone_into(&mut entry.last_exit);
            entry.restarts += 1;
        }
    }
}
