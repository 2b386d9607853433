//! Whether tokenizer, special tokens, chat template and embedding agree.

use std::collections::{BTreeMap, BTreeSet};

use luthier_checkpoint::SideFile;
use luthier_checkpoint::layout::StackKind;
use luthier_text::chat::{ChatInput, ChatTemplates, render};
use luthier_text::{TextError, Tokenizer};
use serde_json::{Map, Value, json};

use super::{Finding, Severity};

/// What a conversation is about does not matter; these words are no marker of any template.
const QUESTION: &str = "Which way is north";
const ANSWER: &str = "Where the needle points";

/// `rows` of the embedding, where they are known.
pub(super) fn examine(
    config: &Map<String, Value>,
    side_files: &[SideFile],
    rows: Option<usize>,
) -> Vec<Finding> {
    let mut files: BTreeMap<String, Vec<u8>> =
        side_files.iter().map(|file| (file.name.clone(), file.bytes.clone())).collect();
    if let Ok(bytes) = serde_json::to_vec(config) {
        files.insert("config.json".to_string(), bytes);
    }
    let tokenizer = match Tokenizer::from_files(&files) {
        Ok(tokenizer) => tokenizer,
        Err(TextError::MissingTokenizer { .. }) => {
            let what =
                "there is no tokenizer.json, tokenizer.model or spiece.model: only token ids can be used";
            let fix = "copy the files of the model's tokenizer into the folder";
            return vec![Finding::new(Severity::Warning, "tokenizer", what, fix)];
        }
        Err(problem) => {
            let fix = "take the tokenizer's files from their source again";
            return vec![Finding::new(Severity::Error, "tokenizer", problem.to_string(), fix)];
        }
    };
    let mut findings = Vec::new();
    if let Some(rows) = rows {
        findings.extend(fits(&tokenizer, rows));
    }
    let generation = side_file(side_files, "generation_config.json");
    let ids = Ids { config, generation: generation.as_ref(), tokenizer: &tokenizer, rows };
    findings.extend(ids.examine());
    match ChatTemplates::from_files(&files) {
        Ok(templates) => {
            if let Some(template) = templates.choose(false) {
                findings.extend(of_template(template, &tokenizer, &ids.ends()));
            }
        }
        Err(problem) => {
            let fix = "repair the template, or remove it";
            findings.push(Finding::new(Severity::Error, "chat template", problem.to_string(), fix));
        }
    }
    findings
}

fn side_file(side_files: &[SideFile], name: &str) -> Option<Map<String, Value>> {
    let file = side_files.iter().find(|file| file.name == name)?;
    serde_json::from_slice(&file.bytes).ok()
}

fn fits(tokenizer: &Tokenizer, rows: usize) -> Option<Finding> {
    let tokens = tokenizer.vocab_size();
    if let Err(problem) = tokenizer.check_fits(rows) {
        let fix =
            "the tokenizer is another model's, or tokens were added to it without rows in the embedding";
        return Some(Finding::new(Severity::Error, "tokenizer", problem.to_string(), fix));
    }
    (tokens < rows).then(|| {
        let what = format!("knows {tokens} tokens, the embedding has {rows} rows: the rest is padding");
        Finding::new(Severity::Note, "tokenizer", what, "")
    })
}

/// The places that say which tokens start, end and pad.
struct Ids<'a> {
    config: &'a Map<String, Value>,
    generation: Option<&'a Map<String, Value>>,
    tokenizer: &'a Tokenizer,
    rows: Option<usize>,
}

impl Ids<'_> {
    fn examine(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for key in ["bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"] {
            for (file, id) in self.said(key) {
                findings.extend(self.of_id(file, key, id));
            }
        }
        findings.extend(self.of_end());
        findings.extend(self.of_start());
        findings.extend(self.of_padding());
        findings
    }

    /// What each file says of a key: every id that stands there.
    fn said(&self, key: &str) -> Vec<(&'static str, i64)> {
        let nested = self.config.get("decoder").and_then(Value::as_object);
        let places = [
            ("config.json", Some(self.config)),
            ("config.json", nested),
            ("generation_config.json", self.generation),
        ];
        let mut said = Vec::new();
        for (file, keys) in places {
            match keys.and_then(|keys| keys.get(key)) {
                Some(Value::Array(ids)) => {
                    said.extend(ids.iter().filter_map(Value::as_i64).map(|id| (file, id)))
                }
                Some(id) => said.extend(id.as_i64().map(|id| (file, id))),
                None => {}
            }
        }
        said.dedup();
        said
    }

    fn of_id(&self, file: &str, key: &str, id: i64) -> Option<Finding> {
        let subject = format!("{file} {key}");
        // Some programs write -1 for none.
        if id == -1 && key == "pad_token_id" {
            return None;
        }
        let within = self.rows.is_none_or(|rows| id >= 0 && (id as u64) < rows as u64);
        if !within || id < 0 {
            let rows = self.rows.unwrap_or(0);
            let what = format!("is {id}, no token of the {rows} that there are");
            let fix = "set it to the token's id in tokenizer.json";
            return Some(Finding::new(Severity::Error, subject, what, fix));
        }
        let spelled = u32::try_from(id).ok().and_then(|id| self.tokenizer.token(id));
        match spelled {
            None => {
                let what = format!("is {id}, a row of the embedding that the tokenizer has no token for");
                let fix = "set it to the token's id in tokenizer.json";
                Some(Finding::new(Severity::Warning, subject, what, fix))
            }
            Some(token) if key == "eos_token_id" && self.is_ordinary(id as u32, &token) => {
                let what = format!("is {id}, the ordinary token {token:?}: texts would end in the middle");
                let fix = "set it to the end token's id in tokenizer.json";
                Some(Finding::new(Severity::Error, subject, what, fix))
            }
            Some(_) => None,
        }
    }

    /// A token that stands for text, by how it is spelled and by what the tokenizer says of it.
    fn is_ordinary(&self, id: u32, token: &str) -> bool {
        let bracketed = |open, close| token.starts_with(open) && token.ends_with(close) && token.len() > 2;
        !(self.tokenizer.is_special(id) || bracketed('<', '>') || bracketed('[', ']'))
    }

    /// All ids that end a text, by any file.
    fn ends(&self) -> BTreeSet<u32> {
        let mut ends: BTreeSet<u32> = self.tokenizer.end_ids().into_iter().collect();
        ends.extend(self.said("eos_token_id").into_iter().filter_map(|(_, id)| u32::try_from(id).ok()));
        ends
    }

    fn of_end(&self) -> Option<Finding> {
        let said = self.said("eos_token_id");
        let named = self.tokenizer.eos();
        let spelled = |id: u32| self.tokenizer.token(id).unwrap_or_else(|| "?".to_string());
        match (named, said.is_empty()) {
            // An encoder alone never stops, for it never begins.
            (None, true)
                if luthier_arch::layout(self.config)
                    .is_ok_and(|layout| !layout.has_stack(StackKind::Decoder)) =>
            {
                None
            }
            (None, true) => {
                let what = "no file names an end token: generation runs until its limit";
                let fix = "set eos_token_id in config.json and generation_config.json";
                Some(Finding::new(Severity::Warning, "eos_token_id", what, fix))
            }
            (Some(named), false) if !said.iter().any(|(_, id)| *id == i64::from(named)) => {
                let ids: Vec<String> = said.iter().map(|(file, id)| format!("{id} in {file}")).collect();
                let what = format!(
                    "the tokenizer's is {named} ({:?}), but it is {}",
                    spelled(named),
                    ids.join(" and ")
                );
                let fix = "set all to the token after which the model was trained to stop";
                Some(Finding::new(Severity::Warning, "eos_token_id", what, fix))
            }
            _ => None,
        }
    }

    fn of_start(&self) -> Option<Finding> {
        let (said, named) = (self.said("bos_token_id"), self.tokenizer.bos()?);
        let (file, id) = said.iter().find(|(_, id)| *id != i64::from(named))?;
        if !self.tokenizer.adds_bos() {
            // Nothing is put before a text, so that nobody notices.
            return None;
        }
        let what = format!("is {id} in {file}, but the tokenizer starts texts with {named}");
        Some(Finding::new(Severity::Warning, "bos_token_id", what, "set it to the tokenizer's"))
    }

    fn of_padding(&self) -> Option<Finding> {
        let said = self.said("pad_token_id");
        let named = self.tokenizer.pad();
        if named.is_none() && !said.iter().any(|(_, id)| *id >= 0) {
            let what = "no file names a padding token: batches of unequal length fail, in training above all";
            let fix = "name one in tokenizer_config.json and config.json: an unused token, or the end token";
            return Some(Finding::new(Severity::Warning, "pad_token", what, fix));
        }
        let pad = named?;
        if self.ends().len() == 1 && self.ends().contains(&pad) {
            let what = "is the end token too: a trainer that masks padding never teaches the model to stop";
            return Some(Finding::new(Severity::Note, "pad_token", what, ""));
        }
        let (file, id) = said.iter().find(|(_, id)| *id != i64::from(pad) && *id >= 0)?;
        let what = format!("is {id} in {file}, but {pad} by the tokenizer");
        Some(Finding::new(Severity::Warning, "pad_token_id", what, "set both to the same token"))
    }
}

fn of_template(template: &str, tokenizer: &Tokenizer, ends: &BTreeSet<u32>) -> Vec<Finding> {
    const SUBJECT: &str = "chat template";
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let chat = |messages: Value, add_generation_prompt: bool| ChatInput {
        messages,
        add_generation_prompt,
        ..ChatInput::default()
    };
    let asked = json!([turn("user", QUESTION)]);
    let answered = json!([turn("user", QUESTION), turn("assistant", ANSWER)]);
    let text = match render(template, &chat(answered, false), tokenizer) {
        Ok(text) => text,
        Err(problem) => {
            let fix = "repair the template, or take the model's own from its source";
            return vec![Finding::new(Severity::Error, SUBJECT, problem.to_string(), fix)];
        }
    };
    let mut findings = Vec::new();
    for part in [QUESTION, ANSWER] {
        if !text.contains(part) {
            let what = format!("leaves out what was said ({part:?})");
            let fix = "take the model's own template from its source";
            findings.push(Finding::new(Severity::Error, SUBJECT, what, fix));
        }
    }
    if let Err(problem) = render(template, &chat(asked, true), tokenizer) {
        findings.push(Finding::new(Severity::Error, SUBJECT, problem.to_string(), "repair the template"));
    }
    let foreign: Vec<String> =
        markers(&text).into_iter().filter(|name| tokenizer.id(name).is_none()).collect();
    if !foreign.is_empty() {
        let what = format!("writes {}, which the tokenizer has no token for", foreign.join(", "));
        let fix = "it is another model's template; take the model's own, or add the tokens";
        findings.push(Finding::new(Severity::Warning, SUBJECT, what, fix));
        return findings;
    }
    // What stands right after an answer is what the model was trained to write there.
    let after = text.rsplit_once(ANSWER).map_or("", |(_, after)| after);
    let Ok(ids) = tokenizer.encode_prompt(after.trim_start()) else { return findings };
    let end = ids.iter().find(|id| tokenizer.is_special(**id));
    if let Some(end) = end.filter(|end| !ends.contains(end) && tokenizer.bos() != Some(**end)) {
        let token = tokenizer.token(*end).unwrap_or_default();
        let what = format!(
            "ends an answer with {token:?} ({end}), which is no end token of the model: chats do not stop"
        );
        let fix = "add it to eos_token_id in generation_config.json";
        findings.push(Finding::new(Severity::Warning, SUBJECT, what, fix));
    }
    findings
}

/// Words in angle brackets with bars, `<|im_end|>`, as templates mark turns; each once.
fn markers(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("<|") {
        let Some(len) = rest[start..].find("|>") else { break };
        let marker = &rest[start..start + len + 2];
        if !marker.chars().any(char::is_whitespace) && !found.iter().any(|known| known == marker) {
            found.push(marker.to_string());
        }
        rest = &rest[start + 2..];
    }
    found
}
