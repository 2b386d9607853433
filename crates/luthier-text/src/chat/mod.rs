//! Chat templates: Jinja, with the functions, filters and tags that transformers gives them.
//!
//! Environment as in transformers' `apply_chat_template`: blocks trimmed, `raise_exception`, `strftime_now`,
//! `tojson` without escaping, `break`/`continue`, Python's string, list and dict methods, and the
//! `{% generation %}` tag, which marks the assistant's part and writes nothing.

mod json;
mod time;

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind};
use serde_json::Value as Json;

use crate::error::{Result, TextError};
use crate::special_tokens::json_file;
use crate::tokenizer::Tokenizer;

/// The templates of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChatTemplates {
    /// The template for everything that has no template of its own.
    pub default: Option<String>,
    /// Further templates: `tool_use`, `rag`, ...
    pub named: BTreeMap<String, String>,
}

impl ChatTemplates {
    /// From chat_template.jinja and additional_chat_templates/*.jinja, else chat_template.json, else
    /// tokenizer_config.json's `chat_template` (a string or a list of `name` and `template`).
    pub fn from_files(files: &BTreeMap<String, Vec<u8>>) -> Result<ChatTemplates> {
        let mut templates = ChatTemplates::default();
        for (name, bytes) in files {
            let additional =
                name.strip_prefix("additional_chat_templates/").and_then(|name| name.strip_suffix(".jinja"));
            if name != "chat_template.jinja" && additional.is_none() {
                continue;
            }
            let text =
                String::from_utf8(bytes.clone()).map_err(|error| TextError::broken(name.as_str(), error))?;
            match additional {
                None => templates.default = Some(text),
                Some(short) => drop(templates.named.insert(short.to_owned(), text)),
            }
        }
        for file in ["chat_template.json", "tokenizer_config.json"] {
            if templates != ChatTemplates::default() {
                break;
            }
            match json_file(files, file)?.as_ref().and_then(|json| json.get("chat_template")) {
                Some(Json::String(text)) => templates.default = Some(text.clone()),
                Some(Json::Array(list)) => templates.take_list(list, file)?,
                Some(Json::Null) | None => {}
                Some(_) => {
                    return Err(TextError::broken(
                        file,
                        "chat_template: wanted a text or a list of templates",
                    ));
                }
            }
        }
        Ok(templates)
    }

    fn take_list(&mut self, list: &[Json], file: &str) -> Result<()> {
        for (index, entry) in list.iter().enumerate() {
            let (Some(name), Some(text)) = (entry["name"].as_str(), entry["template"].as_str()) else {
                let reason = format!("chat_template: entry {index} needs a name and a template");
                return Err(TextError::broken(file, reason));
            };
            if name == "default" {
                self.default = Some(text.to_owned());
            } else {
                self.named.insert(name.to_owned(), text.to_owned());
            }
        }
        Ok(())
    }

    /// The template for a chat: `tool_use` where there are tools and such a template, else the default.
    pub fn choose(&self, has_tools: bool) -> Option<&str> {
        let tool_use = self.named.get("tool_use").filter(|_| has_tools);
        tool_use.or(self.default.as_ref()).map(String::as_str)
    }
}

/// What a template is given.
#[derive(Debug, Clone, Default)]
pub struct ChatInput {
    /// The messages: a list of objects with `role` and `content`.
    pub messages: Json,
    /// The tools as JSON schemas, or null.
    pub tools: Json,
    /// The documents, or null.
    pub documents: Json,
    /// Whether the text ends where the assistant goes on.
    pub add_generation_prompt: bool,
    /// Further variables (`enable_thinking`, ...).
    pub extra: BTreeMap<String, Json>,
    /// Now, in seconds since 1970 in the time zone that `strftime_now` shall tell.
    pub now_unix_s: i64,
}

/// The chat as text. The special tokens of `tokenizer` are known to the template as `bos_token`, `eos_token`,
/// ... A template that raises an exception, or is broken, is an error with its words and line.
pub fn render(template: &str, input: &ChatInput, tokenizer: &Tokenizer) -> Result<String> {
    let template = without_generation_tags(template);
    let environment = environment(input.now_unix_s)?;
    let mut variables: BTreeMap<String, Value> = BTreeMap::new();
    for (role, token) in tokenizer.special_tokens().named() {
        variables.insert(role.to_owned(), Value::from(token));
    }
    variables.insert("messages".to_owned(), Value::from(Serde(&input.messages)));
    variables.insert("tools".to_owned(), Value::from(Serde(&input.tools)));
    variables.insert("documents".to_owned(), Value::from(Serde(&input.documents)));
    variables.insert("add_generation_prompt".to_owned(), Value::from(input.add_generation_prompt));
    variables.extend(input.extra.iter().map(|(name, value)| (name.clone(), Value::from(Serde(value)))));
    environment.render_str(&template, variables).map_err(|error| TextError::Template(words(&error)))
}

/// The error with its line and its causes, without the template's source.
fn words(error: &minijinja::Error) -> String {
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        words.push_str(": ");
        words.push_str(&inner.to_string());
        cause = inner.source();
    }
    words
}

fn environment(now_unix_s: i64) -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| TextError::Template(words(&error)))?);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function(
        "raise_exception",
        |message: String| -> std::result::Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    environment.add_function("strftime_now", move |format: String| time::strftime(&format, now_unix_s));
    Ok(environment)
}

/// `tojson(indent=none, ensure_ascii=false, separators=none, sort_keys=false)` as Python's `json.dumps`.
fn to_json(value: Value, options: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;
    let separators = match separators.as_deref() {
        None => None,
        Some([item, key]) => Some((item.clone(), key.clone())),
        Some(_) => {
            let reason = "tojson: separators wants two texts";
            return Err(minijinja::Error::new(ErrorKind::InvalidOperation, reason));
        }
    };
    let json = serde_json::to_value(&value)
        .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, format!("tojson: {error}")))?;
    let style = json::Style {
        indent,
        ensure_ascii: ensure_ascii.unwrap_or(false),
        sort_keys: sort_keys.unwrap_or(false),
        separators,
    };
    Ok(Value::from_safe_string(json::write(&json, &style)))
}

/// `{% generation %}` and its end as an `if` that always holds: same blanks, no text of its own.
fn without_generation_tags(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        let Some(len) = tag.find("%}").map(|at| at + 2) else { break };
        out.push_str(before);
        let inside = &tag[2..len - 2];
        let name = inside.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        match name {
            "generation" => out.push_str(&tag[..len].replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag[..len].replace("endgeneration", "endif")),
            _ => out.push_str(&tag[..len]),
        }
        rest = &tag[len..];
    }
    out.push_str(rest);
    out
}
