//! A model's name taken apart: organization, base name, size, fine-tune, version.
//!
//! Source: `gguf-py/gguf/metadata.py` of llama.cpp, whose parts `general.*` keys hold.

/// Hyphens as spaces, lower-case words capitalised, versions and numbers as they are.
pub(super) fn title(name: &str) -> String {
    let word = |word: &str| {
        let version = word.strip_prefix('v').is_some_and(is_dotted_number);
        let lower = word.chars().any(char::is_lowercase) && !word.chars().any(char::is_uppercase);
        if !lower || version || word.starts_with(|first: char| first.is_ascii_digit()) {
            return word.to_string();
        }
        let mut after_letter = false;
        let capital = |letter: char| {
            let upper = letter.is_alphabetic() && !after_letter;
            after_letter = letter.is_alphabetic();
            if upper { letter.to_uppercase().collect::<String>() } else { letter.to_string() }
        };
        word.chars().map(capital).collect()
    };
    name.replace('-', " ").split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// A number of weights with two digits at least: `135M`, `1.1B`.
pub(super) fn size_label(parameters: usize) -> String {
    let count = parameters as f64;
    let (scaled, unit) = match count {
        count if count > 1e12 => (count * 1e-12, 'T'),
        count if count > 1e9 => (count * 1e-9, 'B'),
        count if count > 1e6 => (count * 1e-6, 'M'),
        count => (count * 1e-3, 'K'),
    };
    let digits = format!("{}", scaled.round_ties_even() as u64);
    let decimals = 2usize.saturating_sub(digits.trim_start_matches('0').len());
    format!("{scaled:.decimals$}{unit}")
}

/// The parts of a model's name, as llama.cpp's converter tells them apart.
#[derive(Debug, Default, PartialEq)]
pub(super) struct NameParts {
    pub(super) name: String,
    pub(super) organization: Option<String>,
    pub(super) basename: Option<String>,
    pub(super) finetune: Option<String>,
    pub(super) version: Option<String>,
    pub(super) size_label: Option<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Plain,
    Version,
    Type,
    Size,
    Finetune,
}

impl NameParts {
    /// The parts of `name` or `organization/name` of a model with that many weights.
    pub(super) fn of(id: &str, parameters: usize) -> NameParts {
        if id.contains(' ') {
            return NameParts { name: id.to_string(), ..NameParts::default() };
        }
        let (organization, name) = match id.split_once('/') {
            Some((organization, name)) if !organization.starts_with('.') => (Some(organization), name),
            Some((_, name)) => (None, name),
            None => (None, id),
        };
        let words = name.split('-').filter(|word| !word.is_empty()).enumerate();
        let mut parts: Vec<(String, Part)> =
            words.map(|(at, word)| classify(word, at > 0, parameters)).collect();
        let has_digit = |word: &str| word.contains(|letter: char| letter.is_ascii_digit());
        if parts.iter().any(|(word, part)| *part == Part::Size && has_digit(word)) {
            for (word, part) in &mut parts {
                if *part == Part::Size && !has_digit(word) {
                    *part = Part::Plain;
                }
            }
        }
        let is_base = |(word, part): &(String, Part)| {
            *part == Part::Version
                || *part == Part::Plain && word.starts_with(|first: char| first.is_alphabetic())
        };
        let mut n_base = parts.iter().take_while(|part| is_base(part)).count();
        // A version at the very end of the name is the model's, not a part of the base's name.
        if n_base == parts.len() {
            n_base = parts.iter().rposition(|(_, part)| *part != Part::Version).map_or(0, |last| last + 1);
        }
        for (_, part) in &mut parts[n_base..] {
            if *part == Part::Plain {
                *part = Part::Finetune;
            }
        }
        let joined = |wanted: Part| {
            let found = parts[n_base..].iter().filter(|(_, part)| *part == wanted);
            let mut words: Vec<&str> = Vec::new();
            for (word, _) in found {
                if wanted != Part::Size || !words.contains(&word.as_str()) {
                    words.push(word);
                }
            }
            (!words.is_empty()).then(|| words.join("-"))
        };
        let (size_label, finetune, version) =
            (joined(Part::Size), joined(Part::Finetune), joined(Part::Version));
        let base: Vec<&str> = parts[..n_base].iter().map(|(word, _)| word.as_str()).collect();
        let clear = size_label.is_some() || finetune.is_some() || version.is_some();
        NameParts {
            name: name.to_string(),
            organization: organization.filter(|text| !text.is_empty()).map(str::to_string),
            basename: (clear && !base.is_empty()).then(|| base.join("-")),
            finetune,
            version,
            size_label,
        }
    }
}

fn classify(word: &str, after_first: bool, parameters: usize) -> (String, Part) {
    let lower = word.to_ascii_lowercase();
    let bare = lower.strip_prefix('v').or_else(|| lower.strip_prefix("iter")).unwrap_or(&lower);
    if is_dotted_number(bare) {
        return (word.to_string(), Part::Version);
    }
    if is_type(&lower) {
        return (word.to_ascii_uppercase(), Part::Type);
    }
    if !after_first {
        return (word.to_string(), Part::Plain);
    }
    if let Some((label, count)) = size_of(word) {
        // A size far from the model's own is a length of context.
        let near = |count: f64| (count - parameters as f64).abs() <= (7 * parameters / 8) as f64;
        if parameters > 0 && count.is_some_and(|count| !near(count)) {
            let (number, unit) = label.split_at(label.len() - 1);
            return (format!("{number}{}", unit.to_ascii_lowercase()), Part::Finetune);
        }
        return (label, Part::Size);
    }
    if ["small", "mini", "medium", "large", "xl", "xxl"].contains(&lower.as_str()) {
        return (word.to_string(), Part::Size);
    }
    let finetune = ["chat", "instruct", "vision", "lora"].contains(&lower.as_str());
    (word.to_string(), if finetune { Part::Finetune } else { Part::Plain })
}

fn is_dotted_number(text: &str) -> bool {
    text.split('.').all(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// `q4_k_m`, `iq2_s`, `f16`, `bf16`, `fp32`.
fn is_type(lower: &str) -> bool {
    if ["f16", "f32", "fp16", "fp32", "bf16", "bf32", "bfp16", "bfp32"].contains(&lower) {
        return true;
    }
    let Some(quant) = lower.strip_prefix("iq").or_else(|| lower.strip_prefix('q')) else { return false };
    let mut pieces = quant.split('_');
    let digit = pieces.next().is_some_and(|digit| digit.len() == 1 && digit.as_bytes()[0].is_ascii_digit());
    digit && pieces.all(|piece| piece.len() == 1 && piece.as_bytes()[0].is_ascii_alphanumeric())
}

/// The label of `135M`, `8x7b`, `7b1` or `a3b`, and the number that it says where it is a plain one.
fn size_of(word: &str) -> Option<(String, Option<f64>)> {
    let mut word = word.replace('_', ".");
    let last = word.chars().last()?;
    if last.is_ascii_digit() && word.len() > 2 {
        // 7b1 means 7.1b.
        let unit = word[..word.len() - 1].chars().last().filter(|unit| "kmbtKMBT".contains(*unit))?;
        word = format!("{}.{last}{unit}", &word[..word.len() - 2]);
    }
    let unit = word.chars().last().filter(|unit| "kmbtKMBT".contains(*unit))?.to_ascii_uppercase();
    let number = &word[..word.len() - 1];
    let power = 1 + "KMBT".find(unit)? as i32;
    let plain = number.strip_prefix(['a', 'A']).unwrap_or(number);
    let plain = match plain.split_once(['x', 'X']) {
        Some((experts, each)) if experts.bytes().all(|byte| byte.is_ascii_digit()) && !experts.is_empty() => {
            each
        }
        Some(_) => return None,
        None => plain,
    };
    if !is_dotted_number(plain) || plain.matches('.').count() > 1 {
        return None;
    }
    let count = number.parse::<f64>().ok().map(|count| count * 1000f64.powi(power));
    Some((format!("{number}{unit}"), count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fall_into_parts_as_llama_cpp_has_them() {
        type Row<'r> = (&'r str, usize, &'r str, [Option<&'r str>; 5], &'r str);
        // Made by gguf-py's Metadata.get_model_id_components, id_to_title and size_label.
        let rows: [Row; 11] = [
            (
                "HuggingFaceTB/SmolLM2-135M-Instruct",
                134515008,
                "SmolLM2 135M Instruct",
                [Some("HuggingFaceTB"), Some("SmolLM2"), Some("Instruct"), None, Some("135M")],
                "135M",
            ),
            (
                "mistralai/Mixtral-8x7B-Instruct-v0.1",
                46702792704,
                "Mixtral 8x7B Instruct v0.1",
                [Some("Mistralai"), Some("Mixtral"), Some("Instruct"), Some("v0.1"), Some("8x7B")],
                "47B",
            ),
            (
                "Qwen/Qwen2.5-0.5B",
                494032768,
                "Qwen2.5 0.5B",
                [Some("Qwen"), Some("Qwen2.5"), None, None, Some("0.5B")],
                "494M",
            ),
            (
                "meta-llama/Llama-3.2-1B",
                1235814400,
                "Llama 3.2 1B",
                [Some("Meta Llama"), Some("Llama-3.2"), None, None, Some("1B")],
                "1.2B",
            ),
            (
                "microsoft/Phi-3-mini-4k-instruct",
                3821079552,
                "Phi 3 Mini 4k Instruct",
                [Some("Microsoft"), Some("Phi-3"), Some("4k-instruct"), None, Some("mini")],
                "3.8B",
            ),
            (
                "bigscience/bloom-7b1-petals",
                7069016064,
                "Bloom 7b1 Petals",
                [Some("Bigscience"), Some("bloom"), Some("petals"), None, Some("7.1B")],
                "7.1B",
            ),
            ("my-model", 100, "My Model", [None; 5], "0.10K"),
            (
                "google/gemma-2-2b-it",
                2614341888,
                "Gemma 2 2b It",
                [Some("Google"), Some("gemma-2"), Some("it"), None, Some("2B")],
                "2.6B",
            ),
            (
                "mistral-7b-v0.1-q4_k_m",
                7241732096,
                "Mistral 7b v0.1 Q4_K_M",
                [None, Some("mistral"), None, Some("v0.1"), Some("7B")],
                "7.2B",
            ),
            (
                "Qwen3-30B-A3B",
                30532122624,
                "Qwen3 30B A3B",
                [None, Some("Qwen3"), None, None, Some("30B-A3B")],
                "31B",
            ),
            ("x-v2", 5, "X v2", [None, Some("x"), None, Some("v2"), None], "0.01K"),
        ];
        for (id, parameters, name, parts, label) in rows {
            let came = NameParts::of(id, parameters);
            assert_eq!(title(&came.name), name);
            let organization = came.organization.as_deref().map(title);
            let came = [
                organization.as_deref(),
                came.basename.as_deref(),
                came.finetune.as_deref(),
                came.version.as_deref(),
                came.size_label.as_deref(),
            ];
            assert_eq!(came, parts, "{id}");
            assert_eq!(size_label(parameters), label, "{id}");
        }
    }
}
