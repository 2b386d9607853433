//! What became of every tensor: copied (byte-identical), changed, made, or dropped with a reason.
//!
//! A tensor of an input that ends as none of these, and a tensor of the output that comes from none, are errors.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, TensorInfo, TensorSource};

/// What became of one tensor of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Unknown,
    Used,
    Dropped(String),
}

/// The account of one run of a verb.
#[derive(Debug, Default)]
pub struct Ledger {
    inputs: Vec<Input>,
    /// Output tensor -> how it came to be.
    outputs: HashMap<String, Origin>,
}

#[derive(Debug)]
struct Input {
    label: String,
    names: Vec<String>,
    fates: HashMap<String, Fate>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Copied,
    Changed(String),
    Made(String),
}

/// Which input of a ledger, as [`Ledger::input`] gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputId(usize);

/// A ledger in numbers, with every drop and every kind of change spelled out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerSummary {
    /// Tensors of all inputs.
    pub input_tensors: usize,
    /// Tensors of the output.
    pub output_tensors: usize,
    /// Output tensors that are byte for byte an input's.
    pub copied: usize,
    /// Output tensors made from inputs' values: how, and how many.
    pub changed: BTreeMap<String, usize>,
    /// Output tensors that no input had: how, and how many.
    pub made: BTreeMap<String, usize>,
    /// Input tensors that are not in the output.
    pub dropped: Vec<Dropped>,
}

/// One input tensor that is not in the output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropped {
    /// The input's label.
    pub input: String,
    /// The tensor.
    pub tensor: String,
    /// Why.
    pub reason: String,
}

impl Ledger {
    /// A ledger without inputs.
    pub fn new() -> Ledger {
        Ledger::default()
    }

    /// Adds an input; each of its tensors has to be accounted for. `label` is the place as the user gave it.
    pub fn input(&mut self, label: &str, tensors: &dyn TensorSource) -> InputId {
        let names: Vec<String> = tensors.infos().iter().map(|info| info.name.clone()).collect();
        let fates = names.iter().map(|name| (name.clone(), Fate::Unknown)).collect();
        self.inputs.push(Input { label: label.to_string(), names, fates });
        InputId(self.inputs.len() - 1)
    }

    /// `target` of the output is `source` of an input. Refuses when the bytes differ.
    pub fn copied(
        &mut self,
        input: InputId,
        source: &str,
        target: &str,
        source_bytes: &[u8],
        target_bytes: &[u8],
    ) -> Result<()> {
        let same_memory = std::ptr::eq(source_bytes, target_bytes);
        if !same_memory && source_bytes != target_bytes {
            let what =
                format!("is recorded as a copy of {source}, but its bytes differ; this is a bug of luthier");
            return Err(Error::tensor(target, what));
        }
        self.put_output(target, Origin::Copied)?;
        self.use_input(input, source)
    }

    /// `target` of the output was made from the values of `sources`; `how` in few words (`cast to BF16`).
    pub fn changed(&mut self, sources: &[(InputId, &str)], target: &str, how: &str) -> Result<()> {
        self.put_output(target, Origin::Changed(how.to_string()))?;
        sources.iter().try_for_each(|(input, source)| self.use_input(*input, source))
    }

    /// `target` of the output comes from no input; `how` in few words (`drawn from N(0, 0.02)`).
    pub fn made(&mut self, target: &str, how: &str) -> Result<()> {
        self.put_output(target, Origin::Made(how.to_string()))
    }

    /// A tensor of an input is not in the output.
    pub fn dropped(&mut self, input: InputId, source: &str, reason: &str) -> Result<()> {
        let fate = self.fate(input, source)?;
        match fate {
            Fate::Unknown => {
                *fate = Fate::Dropped(reason.to_string());
                Ok(())
            }
            _ => Err(Error::tensor(source, "is recorded as dropped, but was recorded before")),
        }
    }

    /// Closes the account over the tensors that the output has. Refuses, naming the first, while an input's tensor has no
    /// fate, an output's tensor has no origin, or one was recorded that the output does not have.
    pub fn finish(self, outputs: &[TensorInfo]) -> Result<LedgerSummary> {
        let mut summary = LedgerSummary { output_tensors: outputs.len(), ..LedgerSummary::default() };
        for input in &self.inputs {
            summary.input_tensors += input.names.len();
            for name in &input.names {
                match &input.fates[name] {
                    Fate::Unknown => {
                        let what = format!(
                            "of {} is neither copied, changed nor dropped; nothing is written",
                            input.label
                        );
                        return Err(Error::tensor(name, what));
                    }
                    Fate::Used => {}
                    Fate::Dropped(reason) => summary.dropped.push(Dropped {
                        input: input.label.clone(),
                        tensor: name.clone(),
                        reason: reason.clone(),
                    }),
                }
            }
        }
        let mut origins = self.outputs;
        for info in outputs {
            match origins.remove(&info.name) {
                None => {
                    return Err(Error::tensor(
                        &info.name,
                        "is in the output, but the ledger does not know it",
                    ));
                }
                Some(Origin::Copied) => summary.copied += 1,
                Some(Origin::Changed(how)) => *summary.changed.entry(how).or_default() += 1,
                Some(Origin::Made(how)) => *summary.made.entry(how).or_default() += 1,
            }
        }
        match origins.keys().min() {
            Some(name) => Err(Error::tensor(name, "is in the ledger, but the output does not have it")),
            None => Ok(summary),
        }
    }

    fn put_output(&mut self, target: &str, origin: Origin) -> Result<()> {
        match self.outputs.insert(target.to_string(), origin) {
            None => Ok(()),
            Some(_) => Err(Error::tensor(target, "is recorded twice in the output")),
        }
    }

    fn fate(&mut self, input: InputId, source: &str) -> Result<&mut Fate> {
        let input = &mut self.inputs[input.0];
        let label = &input.label;
        input.fates.get_mut(source).ok_or_else(|| Error::tensor(source, format!("is not in {label}")))
    }

    fn use_input(&mut self, input: InputId, source: &str) -> Result<()> {
        let fate = self.fate(input, source)?;
        if let Fate::Dropped(_) = fate {
            return Err(Error::tensor(source, "is used, but was recorded as dropped"));
        }
        *fate = Fate::Used;
        Ok(())
    }
}

impl std::fmt::Display for LedgerSummary {
    /// Three lines at most and one for every drop, for people.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |kinds: &BTreeMap<String, usize>| {
            kinds.iter().map(|(how, count)| format!("{count} {how}")).collect::<Vec<_>>().join(", ")
        };
        write!(f, "{} tensors in, {} out: {} copied", self.input_tensors, self.output_tensors, self.copied)?;
        if !self.changed.is_empty() {
            write!(f, "; changed: {}", list(&self.changed))?;
        }
        if !self.made.is_empty() {
            write!(f, "; made: {}", list(&self.made))?;
        }
        for Dropped { input, tensor, reason } in &self.dropped {
            write!(f, "\ndropped {tensor} of {input}: {reason}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use luthier_kernels::bytes::SharedBytes;

    use super::*;
    use crate::{Dtype, MemoryTensors};

    fn info(name: &str) -> TensorInfo {
        TensorInfo { name: name.to_string(), dtype: Dtype::U8, shape: vec![2] }
    }

    fn source(names: &[&str]) -> MemoryTensors {
        let tensors = names.iter().map(|name| (info(name), SharedBytes::from_vec(vec![1, 2]))).collect();
        MemoryTensors::new(tensors).unwrap()
    }

    #[test]
    fn every_fate_is_counted() {
        let mut ledger = Ledger::new();
        let input = ledger.input("parent", &source(&["a", "b", "c"]));
        ledger.copied(input, "a", "x", &[1, 2], &[1, 2]).unwrap();
        ledger.copied(input, "a", "x2", &[1, 2], &[1, 2]).unwrap();
        ledger.changed(&[(input, "b"), (input, "a")], "y", "summed").unwrap();
        ledger.made("z", "zeros").unwrap();
        ledger.dropped(input, "c", "rotary table, computed").unwrap();
        let summary = ledger.finish(&[info("x"), info("x2"), info("y"), info("z")]).unwrap();
        assert_eq!((summary.input_tensors, summary.output_tensors, summary.copied), (3, 4, 2));
        assert_eq!(
            summary.to_string(),
            "3 tensors in, 4 out: 2 copied; changed: 1 summed; made: 1 zeros\ndropped c of parent: rotary table, computed"
        );
    }

    #[test]
    fn what_is_not_accounted_for_is_named() {
        let mut ledger = Ledger::new();
        let input = ledger.input("parent", &source(&["a", "b"]));
        ledger.copied(input, "a", "a", &[1], &[1]).unwrap();
        assert_eq!(
            ledger.finish(&[info("a")]).unwrap_err().to_string(),
            "tensor b: of parent is neither copied, changed nor dropped; nothing is written"
        );
        let mut ledger = Ledger::new();
        ledger.made("a", "zeros").unwrap();
        assert!(ledger.finish(&[]).unwrap_err().to_string().contains("output does not have it"));
        let error = Ledger::new().finish(&[info("q")]).unwrap_err().to_string();
        assert_eq!(error, "tensor q: is in the output, but the ledger does not know it");
    }

    #[test]
    fn false_copies_and_contradictions_are_refused() {
        let mut ledger = Ledger::new();
        let input = ledger.input("parent", &source(&["a", "b"]));
        assert!(ledger.copied(input, "a", "a", &[1], &[2]).is_err());
        assert!(ledger.copied(input, "missing", "m", &[1], &[1]).is_err());
        ledger.dropped(input, "b", "unused").unwrap();
        assert!(ledger.changed(&[(input, "b")], "b", "cast").is_err());
        assert!(ledger.dropped(input, "b", "again").is_err());
        ledger.made("z", "zeros").unwrap();
        assert!(ledger.made("z", "zeros").is_err());
    }
}
