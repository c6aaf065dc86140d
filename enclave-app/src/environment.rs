//! The pod's variables: accepted once, measured before the workload starts.
//!
//! ```text
//! names in the settings ─▶ asked of the shim ─▶ checked ─▶ PCR16 extended, locked ─▶ workload
//! ```
//! The parent chooses the values and every document says which they were. An
//! image that names no variables leaves PCR16 to its workload.

use attestation::environment;
use nitro_device::nsm::{NsmError, PcrState};
use wire::Variable;

use crate::nsm::{AskError, Lane, Module, Notary};

/// Variables that may be given to the workload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Environment(Vec<(String, String)>);

/// Why the workload cannot be started with the pod's variables.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvironmentError {
    #[error("the shim sent the variable {name:?}, which the image's settings do not allow")]
    NotWanted { name: String },
    #[error("the shim sent the variable {name:?} twice")]
    Twice { name: String },
    #[error("the pod's variable {name} holds a NUL byte")]
    Nul { name: String },
    #[error("the pod's variables have {size} bytes, at most {} are possible", Variable::ALL_MAX)]
    TooLong { size: usize },
    #[error("cannot measure the pod's variables in PCR{}", environment::REGISTER)]
    Unmeasured(#[source] AskError),
    #[error("PCR{} was extended before the pod's variables were measured", environment::REGISTER)]
    Disturbed,
}

impl Environment {
    /// What the shim sent, if the settings allow all of it.
    pub(crate) fn accept(
        wanted: &[String],
        variables: Vec<Variable>,
    ) -> Result<Environment, EnvironmentError> {
        let size = Variable::size_of_all(&variables);
        if size > Variable::ALL_MAX {
            return Err(EnvironmentError::TooLong { size });
        }
        let mut accepted: Vec<(String, String)> = Vec::new();
        for Variable { name, value } in variables {
            if !wanted.contains(&name) {
                return Err(EnvironmentError::NotWanted { name });
            }
            if accepted.iter().any(|(earlier, _)| *earlier == name) {
                return Err(EnvironmentError::Twice { name });
            }
            if value.contains('\0') {
                return Err(EnvironmentError::Nul { name });
            }
            accepted.push((name, value));
        }
        Ok(Environment(accepted))
    }

    /// Extends PCR16 with the variables and locks it.
    pub(crate) async fn measure(&self, notary: &Notary) -> Result<(), EnvironmentError> {
        let pairs = || self.variables().map(|(name, value)| (name.as_str(), value.as_str()));
        let measured = environment::measure(pairs());
        let extend = move |module: &mut dyn Module| extend_and_lock(module, &measured);
        let PcrState { value, .. } =
            notary.ask(Lane::Agent, extend).await.0.map_err(EnvironmentError::Unmeasured)?;
        if value == environment::pcr(pairs()) { Ok(()) } else { Err(EnvironmentError::Disturbed) }
    }

    /// Names and values, in the order in which they came.
    pub(crate) fn variables(&self) -> impl Iterator<Item = &(String, String)> {
        self.0.iter()
    }
}

fn extend_and_lock(module: &mut dyn Module, measured: &[u8]) -> Result<PcrState, NsmError> {
    let register = u16::from(environment::REGISTER);
    module.extend_pcr(register, measured)?;
    module.lock_pcr(register)?;
    module.describe_pcr(register)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Vec<Variable> {
        pairs.iter().map(|(name, value)| Variable { name: (*name).into(), value: (*value).into() }).collect()
    }

    #[test]
    fn only_what_the_settings_name_is_accepted_once_and_whole() {
        let wanted = ["A".to_owned(), "B".to_owned()];
        let accept = |pairs: &[(&str, &str)]| Environment::accept(&wanted, variables(pairs));
        assert_eq!(accept(&[]).unwrap(), Environment::default());
        assert_eq!(accept(&[("B", "x=y"), ("A", "")]).unwrap().variables().count(), 2);
        assert!(matches!(accept(&[("C", "1")]), Err(EnvironmentError::NotWanted { .. })));
        assert!(matches!(accept(&[("A", "1"), ("A", "2")]), Err(EnvironmentError::Twice { .. })));
        assert!(matches!(accept(&[("A", "1\0B=2")]), Err(EnvironmentError::Nul { .. })));
        let long = "x".repeat(Variable::ALL_MAX);
        assert!(matches!(accept(&[("A", &long)]), Err(EnvironmentError::TooLong { .. })));
        assert!(accept(&[("A", &long[1..])]).is_ok());
    }
}
