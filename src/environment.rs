//! The pod's variables for the workload: those that the image asks for, out of
//! this process's own environment, which the pod's manifest sets.
//!
//! Values are never logged: whoever writes the manifest decides what they are.

use std::env::{self, VarError};

use wire::Variable;

use crate::exit::{Exit, Failure};

const FIX: &str = "correct the variable in the pod's manifest (env)";

/// What this process has of `names`.
pub(crate) fn of_pod(names: &[String]) -> Result<Vec<Variable>, Failure> {
    let mut variables = Vec::new();
    for name in names {
        match env::var(name) {
            Ok(value) => variables.push(Variable { name: name.clone(), value }),
            Err(VarError::NotPresent) => {}
            Err(VarError::NotUnicode(_)) => {
                return Err(Failure::new(Exit::Usage, format!("the variable {name} is not UTF-8"), FIX));
            }
        }
    }
    let size = Variable::size_of_all(&variables);
    if size > Variable::ALL_MAX {
        let most = Variable::ALL_MAX;
        return Err(Failure::new(
            Exit::Usage,
            format!("the pod's variables have {size} bytes, at most {most} are possible"),
            FIX,
        ));
    }
    let set: Vec<&str> = variables.iter().map(|variable| variable.name.as_str()).collect();
    tracing::info!(wanted = names.join(" "), set = set.join(" "), "the image takes variables from the pod");
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_image_asks_for_and_the_pod_has_is_given() {
        let names = ["PATH", "ENCLAVE_SHIM_NO_SUCH_VARIABLE"].map(str::to_owned);
        let given = of_pod(&names).unwrap();
        let expected = Variable { name: "PATH".into(), value: env::var("PATH").unwrap() };
        assert_eq!(given, [expected]);
    }
}
