//! Methods that modules describe: held against the contract's table, given a place, kept, retired (PROTOCOL 3, docs/decisions/0033).
//!
//! In: descriptions from modules, by way of `noded`. Out: what links are derived with. No code of a module comes near a key: a
//! description chooses among what `link/transform` and `link/derive` do anyway. Nothing here reads a clock; `state` makes it durable.

use openred_proto::checked::module_word::is_module;
use openred_proto::id::MethodId;
use openred_proto::method::description::{MethodDescription, PER_MODULE, Vetted, Weakness};
use openred_proto::method::{MethodSet, Place};
use openred_proto::vault::{Capacity, RegisteredMethod};

use crate::error::{Error, Result};

/// Why a method was not taken, or is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MethodFault {
    /// The bytes are no description.
    #[error("its description does not decode")]
    Malformed,
    /// Below the floor.
    #[error("its description is below the floor: {0}")]
    Weak(Weakness),
    /// Of another module.
    #[error("another module has registered it")]
    Taken,
    /// Nobody has registered it.
    #[error("nobody has registered it")]
    Gone,
}

/// A method that a module registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodRecord {
    /// Where it stands.
    pub place: Place,
    /// Who registered it.
    pub module: String,
    /// Its description, canonical.
    pub description: Vec<u8>,
    /// What that says.
    pub vetted: Vetted,
    /// Which registration it was.
    pub epoch: u64,
    /// No new link is made with it.
    pub retired: bool,
}

impl MethodRecord {
    /// From what the state keeps.
    ///
    /// # Errors
    /// As [`Methods::register`], for a description that this build does not take any more.
    pub(crate) fn new(place: Place, module: String, description: Vec<u8>, epoch: u64, retired: bool) -> Result<Self> {
        Ok(Self { place, vetted: vet(&description)?, module, description, epoch, retired })
    }
}

fn vet(description: &[u8]) -> Result<Vetted> {
    let decoded = MethodDescription::decode(description).map_err(|_| Error::Method(MethodFault::Malformed))?;
    decoded.vet().map_err(|weakness| Error::Method(MethodFault::Weak(weakness)))
}

/// One node's table of them, in the order of their places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Methods(Vec<MethodRecord>);

impl Methods {
    /// From what the state keeps.
    pub(crate) const fn from_records(records: Vec<MethodRecord>) -> Self {
        Self(records)
    }

    /// All of them, retired ones included.
    pub(crate) fn records(&self) -> impl ExactSizeIterator<Item = &MethodRecord> {
        self.0.iter()
    }

    /// What stands at `place`, retired or not: links outlive the retirement.
    ///
    /// # Errors
    /// [`Error::Method`].
    pub fn at(&self, place: Place) -> Result<&MethodRecord> {
        self.0.iter().find(|record| record.place == place).ok_or(Error::Method(MethodFault::Gone))
    }

    /// The method with this id, unless it is retired.
    pub(crate) fn live(&self, id: &MethodId) -> Option<&MethodRecord> {
        self.0.iter().find(|record| record.vetted.id == *id && !record.retired)
    }

    /// The ids of those in `set` that are not retired, in rising order: what a card says.
    pub(crate) fn ids(&self, set: MethodSet) -> Vec<MethodId> {
        let live = self.0.iter().filter(|record| !record.retired && set.contains_place(record.place));
        let mut ids: Vec<MethodId> = live.map(|record| record.vetted.id).collect();
        ids.sort_unstable();
        ids
    }

    /// The places of those that a peer's card names.
    pub(crate) fn places(&self, ids: &[MethodId]) -> MethodSet {
        ids.iter().filter_map(|id| self.live(id)).fold(MethodSet::EMPTY, |set, record| set.with_place(record.place))
    }

    /// Takes a description, or takes it again. `is_used` says which places live links still need.
    ///
    /// # Errors
    /// [`Error::Method`] by name; [`Error::LocalFull`]; [`Error::MisuseNotAllowed`] for what is no module's id.
    pub(crate) fn register(
        &mut self,
        module: &str,
        description: Vec<u8>,
        epoch: u64,
        is_used: impl Fn(Place) -> bool,
    ) -> Result<Place> {
        if !is_module(module) {
            return Err(Error::MisuseNotAllowed);
        }
        let vetted = vet(&description)?;
        if let Some(known) = self.0.iter_mut().find(|record| record.vetted.id == vetted.id) {
            // Of a retired one the next module may be another: a link of the old one's goes on under the same description.
            if known.module != module && !known.retired {
                return Err(Error::Method(MethodFault::Taken));
            }
            if known.retired {
                (known.module, known.epoch, known.retired) = (module.to_owned(), epoch, false);
            }
            return Ok(known.place);
        }
        if self.0.iter().filter(|record| record.module == module && !record.retired).count() >= PER_MODULE {
            return Err(Error::LocalFull(Capacity::MethodsOfModule));
        }
        let is_free = |place: &Place| match self.at(*place) {
            Ok(record) => record.retired && !is_used(*place),
            Err(_) => true,
        };
        let place = Place::all().find(is_free).ok_or(Error::LocalFull(Capacity::Methods))?;
        self.0.retain(|record| record.place != place);
        self.0.push(MethodRecord { place, module: module.to_owned(), description, vetted, epoch, retired: false });
        self.0.sort_unstable_by_key(|record| record.place);
        Ok(place)
    }

    /// Retires a method.
    ///
    /// # Errors
    /// [`Error::Method`] when nobody has registered it.
    pub(crate) fn retire(&mut self, id: &MethodId) -> Result<()> {
        let known = self.0.iter_mut().find(|record| record.vetted.id == *id);
        known.ok_or(Error::Method(MethodFault::Gone))?.retired = true;
        Ok(())
    }

    /// As they cross the frame.
    pub(crate) fn listed(&self) -> Vec<RegisteredMethod> {
        let listed = self.0.iter().map(|record| RegisteredMethod {
            place: record.place,
            module: record.module.clone(),
            description: record.description.clone(),
            epoch: record.epoch,
            retired: record.retired,
        });
        listed.collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use openred_proto::method::PLACES;

    use super::*;

    fn described(name: &str) -> Vec<u8> {
        MethodDescription::floor(name).encode()
    }

    #[test]
    fn places_are_bounded_per_module_and_in_all_and_kept_for_links() {
        let mut methods = Methods::default();
        let mut register = |module: &str, name: &str, used: &[u8]| {
            methods.register(module, described(name), 1, |place| used.contains(&place.number()))
        };
        for name in ["a", "b", "c", "d"] {
            register("one", name, &[]).unwrap();
            register("two", &format!("{name}2"), &[]).unwrap();
        }
        assert_eq!(register("one", "e", &[]), Err(Error::LocalFull(Capacity::MethodsOfModule)));
        assert_eq!(register("three", "e", &[]), Err(Error::LocalFull(Capacity::Methods)));
        assert_eq!(register("one", "a", &[]).unwrap().number(), 1, "the same again");
        assert_eq!(register("two", "a", &[]), Err(Error::Method(MethodFault::Taken)));
        let first = MethodDescription::floor("a").id();
        methods.retire(&first).unwrap();
        assert!(methods.live(&first).is_none() && methods.records().len() == PLACES);
        let again = |methods: &mut Methods, used: bool| methods.register("three", described("e"), 2, |_| used);
        assert_eq!(again(&mut methods, true), Err(Error::LocalFull(Capacity::Methods)), "a link needs it");
        assert_eq!(again(&mut methods, false).unwrap().number(), 1);
        assert_eq!(methods.retire(&first), Err(Error::Method(MethodFault::Gone)));
    }

    #[test]
    fn a_weak_one_is_refused_by_name_and_leaves_nothing() {
        let mut methods = Methods::default();
        let weak = MethodDescription { tag_bits: 64, ..MethodDescription::floor("weak") };
        let refused = methods.register("one", weak.encode(), 1, |_| false);
        assert_eq!(refused, Err(Error::Method(MethodFault::Weak(Weakness::TagLength))));
        assert_eq!(methods.register("one", vec![1], 1, |_| false), Err(Error::Method(MethodFault::Malformed)));
        assert_eq!(methods.register("../x", described("a"), 1, |_| false), Err(Error::MisuseNotAllowed));
        assert_eq!(methods, Methods::default());
    }
}
