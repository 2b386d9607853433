//! Chat templates as transformers renders them.

use luthier_text::Tokenizer;
use luthier_text::chat::{ChatInput, ChatTemplates, render};
use serde_json::json;

use crate::small::{Files, byte_level};

fn tokenizer() -> Tokenizer {
    Tokenizer::from_files(&byte_level()).unwrap()
}

fn chat() -> ChatInput {
    let messages = json!([
        {"role": "user", "content": "  Hello, <lute> & \"friends\"  "},
        {"role": "assistant", "content": "Good day."},
    ]);
    // 2026-11-23 18:00:00, a Monday.
    ChatInput { messages, add_generation_prompt: true, now_unix_s: 1_795_456_800, ..Default::default() }
}

fn check(template: &str, wanted: &str) {
    assert_eq!(render(template, &chat(), &tokenizer()).unwrap(), wanted);
}

#[test]
fn blocks_are_trimmed_and_special_tokens_known() {
    check(
        "{{ bos_token }}{% for message in messages %}\n  {% if message['role'] == 'user' %}\nU: {{ message['content'] | trim }}\n  \
         {% else %}\nA: {{ message.content }}{{ eos_token }}\n  {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}\nA:{% endif %}",
        "<bos>U: Hello, <lute> & \"friends\"\nA: Good day.<eos>\nA:",
    );
}

#[test]
fn python_methods_and_loop_controls_work() {
    check(
        "{% for message in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ message.content.strip().upper() }}{% endfor %}",
        "HELLO, <LUTE> & \"FRIENDS\"",
    );
    check("{{ messages[1].content.split(' ')[-1].replace('.', '!') }}{{ 'x'.startswith('x') }}", "day!True");
    check(
        "{% for key, value in messages[1].items() %}{{ key }}={{ value }};{% endfor %}",
        "role=assistant;content=Good day.;",
    );
}

#[test]
fn tojson_writes_as_json_dumps() {
    check("{{ messages[0] | tojson }}", r#"{"role": "user", "content": "  Hello, <lute> & \"friends\"  "}"#);
    check(
        "{{ {'a': [1, 2.5, 1e20, none, true], 'b': {}} | tojson(indent=2) }}",
        "{\n  \"a\": [\n    1,\n    2.5,\n    1e+20,\n    null,\n    true\n  ],\n  \"b\": {}\n}",
    );
    check("{{ 'é🎻' | tojson }}{{ 'é🎻' | tojson(ensure_ascii=true) }}", "\"é🎻\"\"\\u00e9\\ud83c\\udfbb\"");
}

#[test]
fn generation_tags_mark_and_write_nothing() {
    check("a {%- generation -%} b {%- endgeneration %} c", "ab c");
    check("{% generation %}\nb\n{% endgeneration %}\nc", "b\nc");
}

#[test]
fn the_date_is_told() {
    check("{{ strftime_now('%d %b %Y, %A %H:%M') }}", "23 Nov 2026, Monday 18:00");
}

#[test]
fn exceptions_and_broken_templates_are_errors() {
    let error = |template: &str| render(template, &chat(), &tokenizer()).unwrap_err().to_string();
    assert!(error("{{ raise_exception('roles must alternate') }}").contains("roles must alternate"));
    assert!(error("{% if %}").starts_with("chat template: "));
    assert!(error("{{ strftime_now('%Q') }}").contains("%Q"));
}

#[test]
fn templates_are_found_where_models_keep_them() {
    let config = json!({"chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]});
    let mut files = Files::from([("tokenizer_config.json".to_owned(), config.to_string().into_bytes())]);
    let templates = ChatTemplates::from_files(&files).unwrap();
    assert_eq!((templates.choose(false), templates.choose(true)), (Some("D"), Some("T")));
    files.insert("chat_template.jinja".to_owned(), b"J".to_vec());
    assert_eq!(ChatTemplates::from_files(&files).unwrap().choose(true), Some("J"));
    assert_eq!(ChatTemplates::from_files(&Files::new()).unwrap().choose(false), None);
}
