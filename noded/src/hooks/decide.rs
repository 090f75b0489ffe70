//! What becomes of a call by what a hook said, or did not say. The one failure policy: pure.

use openred_module::{Denial, HookResponse, ModuleError, Mutation, Status, Verdict};

use super::budget::CHAIN;
use super::spec::Spec;

/// Why a hook has not decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Not within its time.
    TimedOut,
    /// The hooks before it took all the time, or so much that what was left for it was not enough.
    NoTime,
    /// Its module has as many questions as it may have.
    Saturated,
    /// It failed too often of late and is not asked.
    Off,
    /// Its module does not run, ended over the question, or says that it cannot decide.
    Undecided(String),
}

impl Failure {
    /// Its name in figures.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::TimedOut => "late",
            Self::NoTime => "budget",
            Self::Saturated => "saturated",
            Self::Off => "off",
            Self::Undecided(_) => "undecided",
        }
    }

    /// Whether the breaker counts it: only what the hook itself did.
    pub(crate) fn is_its_own(&self) -> bool {
        matches!(self, Self::TimedOut | Self::Undecided(_))
    }
}

/// What a call does next.
#[derive(Debug)]
pub(crate) enum Step {
    Next,
    Change(Mutation),
    /// It ends with this answer of the hook's.
    Answer(HookResponse),
    /// It is refused.
    Refuse(ModuleError),
}

/// Decides. An observer's word was heard elsewhere and counts nothing.
pub(crate) fn decide(hook: &Spec, said: Result<Verdict, Failure>) -> Step {
    match said {
        Ok(Verdict::Continue) => Step::Next,
        Ok(Verdict::Mutate(mutation)) => Step::Change(mutation),
        Ok(Verdict::Respond(response)) => Step::Answer(response),
        Ok(Verdict::Deny(Denial { code, detail })) => {
            let detail = format!("{} refuses it ({code}): {detail}", hook.name());
            Step::Refuse(ModuleError::new(Status::Forbidden, "hook-denied", detail))
        }
        Err(_) if hook.opens() => Step::Next,
        Err(failure) => Step::Refuse(closed(hook, &failure)),
    }
}

/// What a caller is told where a hook that closes has not decided: that it was no denial, and whose fault it was.
fn closed(hook: &Spec, failure: &Failure) -> ModuleError {
    let name = hook.name();
    let why = match failure {
        Failure::TimedOut => {
            let detail = format!("the hook {name} did not decide within {} ms", hook.timeout().as_millis());
            return ModuleError::new(Status::TimedOut, "hook-timed-out", detail);
        }
        Failure::NoTime => {
            let detail = format!("{} ms for all hooks were over before {name} had decided", CHAIN.as_millis());
            return ModuleError::new(Status::TimedOut, "hook-timed-out", detail);
        }
        Failure::Saturated => "it is asked too much at once",
        Failure::Off => "it failed too often and is left alone for a while",
        Failure::Undecided(why) => why,
    };
    ModuleError::new(Status::Unavailable, "hook-failed", format!("the hook {name} has not decided: {why}"))
}

#[cfg(test)]
mod tests {
    use openred_module::Class;

    use super::super::spec::tests::spec;
    use super::*;

    fn failures() -> [Failure; 5] {
        let gone = Failure::Undecided("its module has gone".into());
        [Failure::TimedOut, Failure::NoTime, Failure::Saturated, Failure::Off, gone]
    }

    #[test]
    fn who_decides_closes_who_looks_opens_and_a_transform_as_it_says() {
        for failure in failures() {
            for class in Class::ALL {
                for opens in [false, true] {
                    let hook = Spec { opens, ..spec("guard", "gate", class) };
                    let goes_on = matches!(decide(&hook, Err(failure.clone())), Step::Next);
                    let expected = class == Class::Observe || class == Class::Transform && opens;
                    assert_eq!(goes_on, expected, "{class:?} {opens} {failure:?}");
                }
            }
        }
    }

    #[test]
    fn a_denial_is_a_denial_and_a_time_out_names_the_module() {
        let hook = spec("guard", "gate", Class::Authz);
        let refused = |said| match decide(&hook, said) {
            Step::Refuse(error) => error,
            other => panic!("{other:?}"),
        };
        let denied = refused(Ok(Verdict::deny("no-strangers", "Strangers stay out.")));
        assert_eq!((denied.status, denied.code), (Status::Forbidden, "hook-denied"));
        assert_eq!(denied.detail, "guard/gate refuses it (no-strangers): Strangers stay out.");
        for failure in failures() {
            let (status, code) = match failure {
                Failure::TimedOut | Failure::NoTime => (Status::TimedOut, "hook-timed-out"),
                _ => (Status::Unavailable, "hook-failed"),
            };
            let error = refused(Err(failure));
            assert_eq!((error.status, error.code), (status, code));
            assert!(error.detail.contains("guard/gate"), "{}", error.detail);
        }
    }
}
