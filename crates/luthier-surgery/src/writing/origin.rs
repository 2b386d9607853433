//! Where the tensors of an output come from.

/// Where one tensor of the output comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// From a tensor of the input of this number: copied, or cast where the types differ.
    From {
        /// Which input.
        input: usize,
        /// Its tensor.
        name: String,
    },
    /// From the values of an input's tensor; how, in few words.
    Changed {
        /// Which input.
        input: usize,
        /// Its tensor.
        name: String,
        /// How.
        how: String,
    },
    /// From the values of several inputs' tensors; how, in few words.
    Merged {
        /// Number of the input and its tensor.
        sources: Vec<(usize, String)>,
        /// How.
        how: String,
    },
    /// From no input; how, in few words.
    Made(String),
}

impl Origin {
    /// Changed further: how, in few words.
    pub(crate) fn then(self, further: &str) -> Origin {
        match self {
            Origin::From { input, name } => Origin::Changed { input, name, how: further.to_string() },
            Origin::Changed { input, name, how } => {
                Origin::Changed { input, name, how: format!("{how}; {further}") }
            }
            Origin::Merged { sources, how } => Origin::Merged { sources, how: format!("{how}; {further}") },
            Origin::Made(how) => Origin::Made(format!("{how}; {further}")),
        }
    }

    /// The inputs and their tensors that it is made of.
    pub(crate) fn sources(&self) -> Vec<(usize, &str)> {
        match self {
            Origin::From { input, name } | Origin::Changed { input, name, .. } => vec![(*input, name)],
            Origin::Merged { sources, .. } => {
                sources.iter().map(|(input, name)| (*input, name.as_str())).collect()
            }
            Origin::Made(_) => Vec::new(),
        }
    }

    /// Of tensors that stand one after the other.
    pub(crate) fn stacked(parts: &[&Origin]) -> Origin {
        let how = parts.iter().find_map(|part| match part {
            Origin::Changed { how, .. } | Origin::Merged { how, .. } | Origin::Made(how) => {
                Some(how.as_str())
            }
            Origin::From { .. } => None,
        });
        let how = how.map_or("stacked".to_string(), |how| format!("{how}; stacked"));
        let mut sources: Vec<(usize, String)> = Vec::new();
        for (input, name) in parts.iter().flat_map(|part| part.sources()) {
            if !sources.iter().any(|(known, source)| *known == input && source == name) {
                sources.push((input, name.to_string()));
            }
        }
        if sources.is_empty() { Origin::Made(how) } else { Origin::Merged { sources, how } }
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        match self {
            Origin::From { name, .. } => name.clone(),
            Origin::Changed { name, how, .. } => format!("{name}, {how}"),
            Origin::Merged { sources, how } => format!("{} tensors, {how}", sources.len()),
            Origin::Made(how) => how.clone(),
        }
    }
}
