//! A moment as clients send it.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, de};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{KnownFormat, ObjectBuilder, RefOr, Schema, SchemaFormat, Type},
};

/// A moment, RFC 3339 with its offset, cut to whole microseconds, which is what Postgres keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(pub DateTime<Utc>);

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Moment;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a moment with its offset (RFC 3339) such as \"2026-02-28T12:00:00Z\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Moment, E> {
                let moment = DateTime::parse_from_rfc3339(text).map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))?;
                let moment = DateTime::from_timestamp_micros(moment.timestamp_micros());
                moment.map(Moment).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

impl PartialSchema for Moment {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::String).format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime))).into()
    }
}

impl ToSchema for Moment {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_rfc_3339_in_microseconds() {
        let read = |text: &str| {
            serde_json::from_value::<Moment>(text.into()).map(|moment| moment.0.to_rfc3339()).map_err(|error| error.to_string())
        };
        assert_eq!(read("2026-02-28T13:00:00.1234567+01:00").unwrap(), "2026-02-28T12:00:00.123456+00:00");
        assert_eq!(read("2026-02-28t12:00:00z").unwrap(), "2026-02-28T12:00:00+00:00");
        for wrong in ["", "now", "2026-02-28", "2026-02-28T12:00:00", "2026-02-30T12:00:00Z", "12026-02-28T12:00:00Z"] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains("expected a moment with its offset"), "{wrong}: {error}");
        }
    }
}
