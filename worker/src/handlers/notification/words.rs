//! What a notification says to one user: templates of its type, in their language, filled in; or what the request said.

use std::collections::BTreeMap;

use minijinja::Value as Filled;
use serde_json::{Value, json};
use shared::{
    kinds::LONGEST_NOTIFICATION,
    notification::{
        LONGEST_TITLE,
        markdown::{self, Formatted},
        template::{Form, Renderer, TemplateError},
    },
    tenant::{Texts, text_for},
};

/// A mail of a type that has no words for it.
const PLAIN_MAIL: &str = "{{ message or title }}{% if url is startingwith('http') %}\n\n[{{ url }}]({{ url }}){% endif %}";

/// What stands under a mail that can be unsubscribed from; the mail's handler fills the address in.
const TEXT_FOOT: &str = "\n\n--\nUnsubscribe: {{unsubscribe_url}}";

/// The same as HTML.
const HTML_FOOT: &str = "<hr>\n<p><a href=\"{{unsubscribe_url}}\">Unsubscribe</a></p>\n";

/// What is said in the inbox and by a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Words {
    /// At most 255 characters on one line.
    pub title: String,
    /// At most 4,000.
    pub message: String,
    /// What a click opens.
    pub url: Option<String>,
}

/// What is said in a mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Letter {
    /// On one line.
    pub subject: String,
    /// Without HTML.
    pub text: String,
    /// With it.
    pub html: String,
}

/// Whoever says something.
#[derive(Debug)]
pub(super) struct Speaker<'a> {
    pub renderer: &'a Renderer,
    pub templates: &'a BTreeMap<String, Texts>,
    /// What is filled in, but for the user.
    pub values: Value,
}

impl Speaker<'_> {
    /// Whether the same words do for all of one language.
    pub(super) fn is_for_all(&self) -> bool {
        let names_user = |text: &Option<String>| text.as_ref().is_some_and(|text| text.contains("user"));
        !self
            .templates
            .values()
            .any(|texts| [&texts.title, &texts.message, &texts.url, &texts.subject, &texts.email].into_iter().any(names_user))
    }

    fn filled(&self, user: &Value, words: Option<&Words>) -> Filled {
        let mut values = self.values.clone();
        values["user"] = user.clone();
        if let Some(words) = words {
            values["title"] = json!(words.title);
            values["message"] = json!(words.message);
            values["url"] = json!(words.url);
        }
        Filled::from(minijinja::value::Serde(values))
    }

    /// What is said, to a user of a language.
    pub(super) fn words(&self, locale: Option<&str>, user: &Value) -> Result<Words, TemplateError> {
        let values = self.filled(user, None);
        let said = |name: &str| self.values.get(name).and_then(Value::as_str).map(str::to_owned);
        let text = |name: &str, field: fn(&Texts) -> Option<&String>| match text_for(self.templates, locale, field) {
            Some(template) => self.renderer.render(template, Form::Plain, &values).map(Some),
            None => Ok(said(name)),
        };
        let title = one_line(&text("title", |texts| texts.title.as_ref())?.unwrap_or_default());
        let message = text("message", |texts| texts.message.as_ref())?.unwrap_or_default();
        let url = text("url", |texts| texts.url.as_ref())?.map(|url| url.trim().to_owned());
        Ok(Words {
            title: if title.is_empty() { "Notification".to_owned() } else { title },
            message: message.replace('\0', "").trim().chars().take(LONGEST_NOTIFICATION).collect(),
            url: url.filter(|url| shared::kinds::is_link(url)),
        })
    }

    /// What is said in a mail.
    pub(super) fn letter(&self, locale: Option<&str>, user: &Value, words: &Words, unsubscribe: bool) -> Result<Letter, TemplateError> {
        let values = self.filled(user, Some(words));
        let subject = match text_for(self.templates, locale, |texts| texts.subject.as_ref()) {
            Some(template) => one_line(&self.renderer.render(template, Form::Plain, &values)?),
            None => String::new(),
        };
        let template = text_for(self.templates, locale, |texts| texts.email.as_ref()).unwrap_or(PLAIN_MAIL);
        let Formatted { html, text } = markdown::format(&self.renderer.render(template, Form::Markdown, &values)?);
        let subject = if subject.is_empty() { words.title.clone() } else { subject };
        let (text_foot, html_foot) = if unsubscribe { (TEXT_FOOT, HTML_FOOT) } else { ("", "") };
        let text = if text.is_empty() { words.title.clone() } else { text };
        Ok(Letter {
            text: format!("{text}{text_foot}"),
            html: format!("<!doctype html>\n<html><head><meta charset=\"utf-8\"></head><body>\n{html}{html_foot}</body></html>\n"),
            subject,
        })
    }
}

/// A title or a subject: control characters end no line there.
fn one_line(text: &str) -> String {
    let spaced: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    spaced.trim().chars().take(LONGEST_TITLE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(title: &str, email: Option<&str>) -> Texts {
        Texts { title: Some(title.to_owned()), email: email.map(str::to_owned), ..Texts::default() }
    }

    #[test]
    fn templates_speak_to_their_user_and_requests_for_themselves() {
        let renderer = Renderer::default();
        let templates = BTreeMap::from([
            ("default".to_owned(), texts("Hello {{ user.name }}", Some("# Hi {{ user.name }}\n\n[open]({{ url }})"))),
            ("de".to_owned(), texts("Hallo {{ user.name }}", None)),
        ]);
        let values = json!({"title": "ignored", "message": "A\u{0}b", "url": "https://a.example/x", "data": {}});
        let speaker = Speaker { renderer: &renderer, templates: &templates, values };
        assert!(!speaker.is_for_all());
        let user = json!({"id": "ada", "name": "Ada <b>"});
        let words = speaker.words(Some("de-AT"), &user).unwrap();
        assert_eq!((words.title.as_str(), words.message.as_str()), ("Hallo Ada <b>", "Ab"));
        let letter = speaker.letter(Some("de-AT"), &user, &words, true).unwrap();
        assert_eq!(letter.subject, "Hallo Ada <b>");
        assert_eq!(one_line(" a\r\nBcc: b "), "a  Bcc: b");
        assert_eq!(letter.text, "Hi Ada <b>\n\nopen (https://a.example/x)\n\n--\nUnsubscribe: {{unsubscribe_url}}");
        assert!(letter.html.contains("<h1>Hi Ada &lt;b&gt;</h1>") && letter.html.contains("{{unsubscribe_url}}"), "{}", letter.html);
    }

    #[test]
    fn without_templates_the_request_s_words_are_said() {
        let (renderer, templates) = (Renderer::default(), BTreeMap::new());
        let values = json!({"title": "Your export is ready", "message": "a_b.csv", "url": "https://a.example/d/1"});
        let speaker = Speaker { renderer: &renderer, templates: &templates, values };
        assert!(speaker.is_for_all());
        let words = speaker.words(None, &json!({})).unwrap();
        let letter = speaker.letter(None, &json!({}), &words, false).unwrap();
        assert_eq!((letter.subject.as_str(), letter.text.as_str()), ("Your export is ready", "a_b.csv\n\nhttps://a.example/d/1"));
    }
}
