//! Words that follow from a number of the answer by a declared rule: what is `high` is not a model's whim.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The most levels.
const MOST: usize = 20;

/// A word for a number: the first level that the number is above.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Levels {
    /// The number: a field of the answer.
    pub of: String,
    /// The field that the word is put into.
    pub into: String,
    /// From the highest to the lowest.
    pub steps: Vec<Level>,
    /// The word for all that is above none.
    #[serde(rename = "else")]
    pub otherwise: String,
}

/// One level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// The number must be greater than this.
    pub above: f64,
    /// The word.
    pub is: String,
}

impl Levels {
    pub(super) fn faults(&self) -> Option<(&'static str, String)> {
        if self.of.is_empty() || self.into.is_empty() || self.of == self.into {
            return Some(("into", "must be another field than `of`, and neither may be empty".to_owned()));
        }
        let falls = self.steps.windows(2).all(|pair| matches!(pair, [higher, lower] if higher.above > lower.above));
        if self.steps.is_empty() || self.steps.len() > MOST || !falls || self.steps.iter().any(|step| !step.above.is_finite()) {
            return Some(("steps", format!("must be 1 to {MOST} levels, from the highest number to the lowest")));
        }
        None
    }

    /// Puts the word into an answer; `false` where the number is missing.
    #[must_use]
    pub fn put_into(&self, answer: &mut Value) -> bool {
        let Some(fields) = answer.as_object_mut() else { return false };
        let Some(number) = fields.get(&self.of).and_then(Value::as_f64) else { return false };
        let step = self.steps.iter().find(|step| number > step.above);
        let word = step.map_or(&self.otherwise, |step| &step.is);
        fields.insert(self.into.clone(), word.as_str().into());
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// R41: `high` above 70, `medium` above 40, else `low`.
    #[test]
    fn the_first_level_that_is_passed_names_it() {
        let levels = Levels {
            of: "score".into(),
            into: "level".into(),
            steps: vec![Level { above: 70.0, is: "high".into() }, Level { above: 40.0, is: "medium".into() }],
            otherwise: "low".into(),
        };
        assert_eq!(levels.faults(), None);
        for (score, level) in [(100, "high"), (71, "high"), (70, "medium"), (41, "medium"), (40, "low"), (0, "low")] {
            // What the model says of it itself does not count.
            let mut answer = json!({"score": score, "level": "high"});
            assert!(levels.put_into(&mut answer));
            assert_eq!(answer["level"], level, "{score}");
        }
        assert!(!levels.put_into(&mut json!({"score": "90"})) && !levels.put_into(&mut json!([])));
        assert!(Levels { steps: levels.steps.iter().rev().cloned().collect(), ..levels }.faults().is_some());
    }
}
