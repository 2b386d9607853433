//! `luthier name parse|make`: a model's name taken into its segments, and put together from them.
//!
//! Names carry most of what people know of a release (arXiv:2409.10472: twelve kinds of segments). Parsing keeps every
//! character: the segments in their order, with what stood between them, are the name again. Example:
//! `luthier name parse Qwen/Qwen2.5-0.5B-Instruct-GGUF`.

mod words;

use serde::Serialize;

use self::words::{DATA, LANGUAGES, METHODS, QUANTISATIONS, SIZES, VARIANTS};

/// What a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The person or organisation before the slash.
    Owner,
    /// The model family.
    Base,
    /// What it is for: `Instruct`, `Coder`, `uncased`.
    Variant,
    /// Number of weights, active ones too, or a word for it.
    Size,
    /// `v1.5`, `3.1`.
    Version,
    /// What it was trained on.
    Data,
    /// The language it speaks.
    Language,
    /// How it was trained or changed.
    Method,
    /// How its weights are stored.
    Quantisation,
    /// How many tokens it reads.
    Context,
    /// When it was made.
    Date,
    /// Anything else.
    Other,
}

/// All kinds, in the order in which `make` writes them.
pub const KINDS: [Kind; 12] = [
    Kind::Owner,
    Kind::Base,
    Kind::Version,
    Kind::Size,
    Kind::Variant,
    Kind::Data,
    Kind::Language,
    Kind::Method,
    Kind::Context,
    Kind::Date,
    Kind::Other,
    Kind::Quantisation,
];

/// A part of a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// What it says.
    pub kind: Kind,
    /// As it stands there.
    pub text: String,
    /// What stands before it: a slash, a hyphen, an underscore, nothing.
    #[serde(skip)]
    pub before: String,
}

/// The segments of `name` or `owner/name`, in their order.
pub fn parse(name: &str) -> Vec<Segment> {
    let name = name.trim_end_matches('/');
    let (owner, own) = match name.rsplit_once('/') {
        Some((owner, own)) => (Some(owner), own),
        None => (None, name),
    };
    let mut segments: Vec<Segment> = Vec::new();
    if let Some(owner) = owner {
        segments.push(Segment { kind: Kind::Owner, text: owner.to_string(), before: String::new() });
    }
    let words = words(own);
    let has_number_of_weights = words.iter().any(|(_, word)| is_number_of_weights(word));
    let mut is_first = true;
    for (before, text) in words {
        let known = kind_of(&text, has_number_of_weights, is_first);
        let goes_on = segments.last().is_some_and(|last| last.kind == Kind::Base);
        // Words that nobody knows belong to the family's name until one says something else.
        let kind = known.unwrap_or(if is_first || goes_on { Kind::Base } else { Kind::Other });
        let before = if is_first && owner.is_some() { "/".to_string() } else { before };
        let last = segments.last_mut().filter(|last| {
            !is_first && last.kind == kind && matches!(kind, Kind::Base | Kind::Date | Kind::Other)
        });
        match last {
            Some(last) => last.text.push_str(&format!("{before}{text}")),
            None => segments.push(Segment { kind, text, before }),
        }
        is_first = false;
    }
    segments
}

/// The name that these segments are.
pub fn join(segments: &[Segment]) -> String {
    segments.iter().map(|segment| format!("{}{}", segment.before, segment.text)).collect()
}

/// A name of these parts, in the usual order: `owner/base-version-size-variant-...`. An error names what cannot stand in one.
pub fn make(parts: &[(Kind, String)]) -> Result<String, String> {
    let of = |kind: Kind| parts.iter().filter(move |(own, _)| *own == kind).map(|(_, text)| text.as_str());
    for (kind, text) in parts {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if text.is_empty() || !text.chars().all(fits) {
            return Err(format!(
                "{kind:?}: wanted letters, digits, hyphens, dots and underscores, came {text:?}"
            ));
        }
    }
    if of(Kind::Base).next().is_none() {
        return Err("base: every name needs one".to_string());
    }
    let inner: Vec<&str> = KINDS.into_iter().filter(|kind| *kind != Kind::Owner).flat_map(of).collect();
    let inner = inner.join("-");
    Ok(match of(Kind::Owner).next() {
        Some(owner) => format!("{owner}/{inner}"),
        None => inner,
    })
}

/// Words with what stands before each. Underscores part words, but for those inside ggml's type names, which may also stand
/// behind a dot: `Model.Q4_K_M.gguf`.
fn words(name: &str) -> Vec<(String, String)> {
    let bare = name.strip_suffix(".gguf").unwrap_or(name);
    let ending = bare.rsplit_once('.').filter(|(_, ending)| is_quantisation(&ending.to_lowercase()));
    let stem = ending.map_or(name, |(stem, _)| stem);
    let mut found: Vec<(String, String)> = Vec::new();
    for (at, hyphened) in stem.split('-').enumerate() {
        let first = if at == 0 { "" } else { "-" };
        if is_quantisation(&hyphened.to_lowercase()) {
            found.push((first.to_string(), hyphened.to_string()));
            continue;
        }
        for (inner, word) in hyphened.split('_').enumerate() {
            found.push((if inner == 0 { first } else { "_" }.to_string(), word.to_string()));
        }
    }
    if ending.is_some() {
        found.push((".".to_string(), name[stem.len() + 1..].to_string()));
    }
    found
}

fn kind_of(text: &str, has_number_of_weights: bool, is_first: bool) -> Option<Kind> {
    let word = text.to_lowercase();
    let word = word.as_str();
    if is_quantisation(word.trim_end_matches(".gguf")) {
        return Some(Kind::Quantisation);
    }
    if is_number_of_weights(word) {
        return Some(Kind::Size);
    }
    // A family may be called after a language or a data set; a name that begins with a number is a version of nothing.
    if is_first {
        return None;
    }
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if word.strip_suffix('k').is_some_and(digits) || word.strip_suffix("ctx").is_some_and(digits) {
        return Some(Kind::Context);
    }
    if is_date(word) {
        return Some(Kind::Date);
    }
    let number = word.strip_prefix('v').unwrap_or(word);
    if !number.is_empty() && number.len() <= 6 && number.split('.').all(digits) {
        return Some(Kind::Version);
    }
    if SIZES.contains(&word) && !(word == "base" && has_number_of_weights) {
        return Some(Kind::Size);
    }
    [(VARIANTS, Kind::Variant), (METHODS, Kind::Method), (LANGUAGES, Kind::Language), (DATA, Kind::Data)]
        .into_iter()
        .find(|(words, _)| words.contains(&word))
        .map(|(_, kind)| kind)
}

/// `7b`, `0.5B`, `135M`, `8x7b`, `a3b` (active), `e2b` (effective).
fn is_number_of_weights(word: &str) -> bool {
    let word = word.to_lowercase();
    let word = word
        .strip_prefix(['a', 'e'])
        .filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        .unwrap_or(&word);
    let Some(number) = word.strip_suffix(['b', 'm', 't']) else { return false };
    let is_number = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_digit())
            && text.ends_with(|c: char| c.is_ascii_digit())
            && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    };
    match number.split_once('x') {
        Some((experts, size)) => is_number(experts) && is_number(size),
        None => is_number(number),
    }
}

/// `20240709`, `202407`, `2407`, `0324`: years from 2018 on, months and days that there are.
fn is_date(word: &str) -> bool {
    if !word.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    let part = |range: std::ops::Range<usize>| {
        word.get(range).and_then(|part| part.parse::<u32>().ok()).unwrap_or(0)
    };
    let month = |at: usize| (1..=12).contains(&part(at..at + 2));
    let day = |at: usize| (1..=31).contains(&part(at..at + 2));
    let year = (2018..=2099).contains(&part(0..4));
    match word.len() {
        8 => year && month(4) && day(6),
        6 => (year && month(4)) || ((18..=99).contains(&part(0..2)) && month(2) && day(4)),
        4 => year || ((18..=99).contains(&part(0..2)) && month(2)) || (month(0) && day(2)),
        _ => false,
    }
}

fn is_quantisation(word: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let ggml = |rest: &str| {
        let mut parts = rest.split('_');
        parts.next().is_some_and(digits)
            && parts.all(|part| {
                digits(part) || ["k", "s", "m", "l", "xl", "xs", "xxs", "nl", "0", "1"].contains(&part)
            })
    };
    let has_type = ["iq", "tq", "q"].iter().any(|prefix| word.strip_prefix(prefix).is_some_and(ggml));
    let bits = ["int", "fp", "bf", "f", "nf", "mxfp", "nvfp"]
        .iter()
        .any(|prefix| word.strip_prefix(prefix).is_some_and(|rest| digits(rest) && rest.len() <= 2));
    let weights_and_activations =
        word.strip_prefix('w').and_then(|rest| rest.split_once('a')).is_some_and(|(weights, activations)| {
            digits(weights) && activations.starts_with(|c: char| c.is_ascii_digit())
        });
    has_type
        || bits
        || weights_and_activations
        || word.strip_suffix("bit").is_some_and(digits)
        || QUANTISATIONS.contains(&word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(name: &str) -> String {
        let segments = parse(name);
        assert_eq!(join(&segments), name, "the segments are the name again");
        let said = |segment: &Segment| format!("{:?}={}", segment.kind, segment.text).to_lowercase();
        segments.iter().map(said).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn names_fall_into_their_segments() {
        for (name, wanted) in [
            (
                "Qwen/Qwen2.5-0.5B-Instruct-GGUF",
                "owner=qwen base=qwen2.5 size=0.5b variant=instruct quantisation=gguf",
            ),
            ("meta-llama/Llama-3.1-8B", "owner=meta-llama base=llama version=3.1 size=8b"),
            (
                "mistralai/Mistral-7B-Instruct-v0.3",
                "owner=mistralai base=mistral size=7b variant=instruct version=v0.3",
            ),
            ("google-bert/bert-base-uncased", "owner=google-bert base=bert size=base variant=uncased"),
            ("SmolLM2-135M-Instruct.Q4_K_M", "base=smollm2 size=135m variant=instruct quantisation=q4_k_m"),
            ("mistralai/Mixtral-8x7B-v0.1", "owner=mistralai base=mixtral size=8x7b version=v0.1"),
            (
                "Qwen/Qwen3-30B-A3B-Instruct-2507",
                "owner=qwen base=qwen3 size=30b size=a3b variant=instruct date=2507",
            ),
            ("gemma-2-2b-it-Q8_0", "base=gemma version=2 size=2b variant=it quantisation=q8_0"),
            (
                "microsoft/Phi-3-mini-4k-instruct",
                "owner=microsoft base=phi version=3 size=mini context=4k variant=instruct",
            ),
            ("llama-7b-base", "base=llama size=7b variant=base"),
            ("deberta-v3-base-squad2", "base=deberta version=v3 size=base data=squad2"),
            ("zephyr-7b-dpo-qlora", "base=zephyr size=7b method=dpo method=qlora"),
            ("indobert_large_id", "base=indobert size=large language=id"),
        ] {
            assert_eq!(parsed(name), wanted);
        }
    }

    #[test]
    fn what_make_writes_parse_reads() {
        let parts = |list: &[(Kind, &str)]| -> Vec<(Kind, String)> {
            list.iter().map(|(kind, text)| (*kind, text.to_string())).collect()
        };
        let given = parts(&[
            (Kind::Size, "1.5B"),
            (Kind::Owner, "org"),
            (Kind::Base, "Model"),
            (Kind::Method, "dpo"),
        ]);
        let name = make(&given).unwrap();
        assert_eq!(name, "org/Model-1.5B-dpo");
        assert_eq!(parsed(&name), "owner=org base=model size=1.5b method=dpo");
        assert!(make(&parts(&[(Kind::Size, "1B")])).unwrap_err().contains("base"));
        assert!(make(&parts(&[(Kind::Base, "a b")])).unwrap_err().contains("a b"));
    }

    proptest::proptest! {
        #[test]
        fn no_character_is_lost(name in "[a-zA-Z0-9._/-]{1,40}") {
            let name = name.trim_end_matches('/');
            proptest::prop_assert_eq!(join(&parse(name)), name);
        }
    }
}
