//! The attributes of the sample world's items and the words for them.

/// A kind of goods: visible in the image and named in the text.
pub(crate) struct Kind {
    /// The word that `truth.json` uses.
    pub(crate) name: &'static str,
    /// The nouns that the texts use for it.
    pub(crate) nouns: [&'static str; 2],
    /// The materials, which only texts name.
    pub(crate) materials: [&'static str; 3],
    /// The lowest and the highest price in dollars.
    pub(crate) price: [f64; 2],
    /// The shop's department.
    pub(crate) department: &'static str,
    /// The kinds (indices into [`KINDS`]) that people buy next, the likeliest first.
    pub(crate) next: [usize; 2],
}

/// An attribute that only texts name: its word, and sentences that use it, in which `{n}` is replaced by the noun.
pub(crate) struct Written {
    /// The word that `truth.json` uses; it occurs in every sentence.
    pub(crate) name: &'static str,
    /// Sentences for descriptions.
    pub(crate) sentences: [&'static str; 3],
}

macro_rules! kind {
    ($name:literal, $noun:literal, [$a:literal, $b:literal, $c:literal], [$low:literal, $high:literal], $dep:literal, [$n1:literal, $n2:literal]) => {
        Kind {
            name: $name,
            nouns: [$name, $noun],
            materials: [$a, $b, $c],
            price: [$low, $high],
            department: $dep,
            next: [$n1, $n2],
        }
    };
}

/// All kinds.
pub(crate) const KINDS: [Kind; 12] = [
    kind!("mug", "cup", ["ceramic", "steel", "glass"], [6.0, 24.0], "Kitchen", [11, 10]),
    kind!("lamp", "light", ["brass", "paper", "bamboo"], [19.0, 120.0], "Lighting", [3, 6]),
    kind!("shirt", "tee", ["cotton", "linen", "wool"], [12.0, 48.0], "Clothing", [4, 10]),
    kind!("cushion", "pillow", ["cotton", "wool", "velvet"], [10.0, 45.0], "Bedding", [5, 1]),
    kind!("bag", "tote", ["canvas", "leather", "cotton"], [14.0, 90.0], "Clothing", [7, 2]),
    kind!("rug", "mat", ["wool", "jute", "cotton"], [25.0, 180.0], "Floors", [1, 3]),
    kind!("vase", "vessel", ["ceramic", "glass", "stone"], [11.0, 70.0], "Decor", [9, 8]),
    kind!("notebook", "journal", ["paper", "leather", "linen"], [5.0, 28.0], "Stationery", [4, 8]),
    kind!("clock", "timepiece", ["wood", "steel", "brass"], [17.0, 95.0], "Decor", [6, 7]),
    kind!("candle", "taper", ["beeswax", "soy", "glass"], [5.0, 30.0], "Decor", [11, 6]),
    kind!("bottle", "flask", ["steel", "glass", "bamboo"], [9.0, 40.0], "Kitchen", [0, 2]),
    kind!("tray", "platter", ["wood", "bamboo", "steel"], [12.0, 55.0], "Kitchen", [0, 9]),
];

/// The colours, which only images show: name and sRGB.
pub(crate) const COLOURS: [(&str, [u8; 3]); 12] = [
    ("red", [200, 38, 44]),
    ("orange", [236, 128, 36]),
    ("yellow", [242, 204, 58]),
    ("green", [62, 146, 72]),
    ("teal", [22, 134, 140]),
    ("blue", [44, 96, 196]),
    ("purple", [122, 66, 160]),
    ("pink", [238, 140, 176]),
    ("brown", [122, 78, 46]),
    ("black", [40, 40, 44]),
    ("white", [248, 247, 244]),
    ("grey", [142, 146, 152]),
];

/// The patterns, which only images show.
pub(crate) const PATTERNS: [&str; 8] =
    ["plain", "striped", "dotted", "checked", "floral", "zigzag", "starry", "triangular"];

/// The shapes of the main body, which only images show.
pub(crate) const SHAPES: [&str; 5] = ["round", "square", "tall", "wide", "tapered"];

/// The uses, which only texts name.
pub(crate) const USES: [Written; 8] = [
    Written {
        name: "camping",
        sentences: [
            "Pack it for camping weekends and long evenings by the fire.",
            "A camping favourite: light to carry, easy to clean and hard to break.",
            "We tested this {n} on camping trips in rain, wind and mud.",
        ],
    },
    Written {
        name: "office",
        sentences: [
            "It brings a calm note to any office desk.",
            "Made for the office and for everyone who works from a small room.",
            "Colleagues will ask where your office {n} came from.",
        ],
    },
    Written {
        name: "picnic",
        sentences: [
            "Just right for a picnic in the park with friends.",
            "Throw it in the basket: this is the {n} that every picnic was missing.",
            "Picnic season is short, so make the most of it.",
        ],
    },
    Written {
        name: "nursery",
        sentences: [
            "Gentle enough for the nursery and safe for small hands.",
            "Parents like this {n} in the nursery because it has no sharp edges.",
            "A quiet friend for the nursery, from the first night on.",
        ],
    },
    Written {
        name: "travel",
        sentences: [
            "Sized for travel, it fits in hand luggage without fuss.",
            "Our travel {n} has crossed three continents and still looks new.",
            "Travel lighter with one thing that does several jobs.",
        ],
    },
    Written {
        name: "bedroom",
        sentences: [
            "It settles into the bedroom as if it had always been there.",
            "A soft touch for the bedroom, best enjoyed late in the evening.",
            "Give your bedroom the {n} that it deserves.",
        ],
    },
    Written {
        name: "garden",
        sentences: [
            "At home in the garden, on the terrace and under the apple tree.",
            "Sun and dew do no harm to this garden {n}.",
            "For slow mornings in the garden.",
        ],
    },
    Written {
        name: "studio",
        sentences: [
            "Designed with painters and potters for the studio.",
            "A studio {n} that does not mind a little paint.",
            "It keeps its place in a busy studio and never gets in the way.",
        ],
    },
];

/// The styles, which only texts name.
pub(crate) const STYLES: [Written; 8] = [
    Written {
        name: "rustic",
        sentences: [
            "The rustic finish shows the marks of the tools.",
            "Rustic on purpose, no two pieces are quite alike.",
            "Its rustic charm comes from an old farmhouse original.",
        ],
    },
    Written {
        name: "modern",
        sentences: [
            "Clean lines give it a modern look.",
            "A modern take on something our grandparents used every day.",
            "The modern design won over our whole team.",
        ],
    },
    Written {
        name: "vintage",
        sentences: [
            "Inspired by vintage finds from flea markets.",
            "It has a vintage feel without the dust.",
            "Vintage lovers will know the model at once.",
        ],
    },
    Written {
        name: "nordic",
        sentences: [
            "A nordic design for long winters.",
            "Nordic restraint, made with care and meant to last.",
            "It comes from our nordic series, drawn in a cabin by the fjord.",
        ],
    },
    Written {
        name: "playful",
        sentences: [
            "A playful piece that makes people smile.",
            "Playful details hide where you least expect them.",
            "It is the most playful {n} in our shop.",
        ],
    },
    Written {
        name: "minimal",
        sentences: [
            "Reduced to what matters: a minimal {n} with nothing to distract.",
            "The minimal form goes with everything you own.",
            "Minimal outside, carefully made inside.",
        ],
    },
    Written {
        name: "coastal",
        sentences: [
            "Its coastal mood smells of salt and pine.",
            "A coastal {n}, thought up on a windy pier.",
            "Coastal light was on our mind when we drew it.",
        ],
    },
    Written {
        name: "industrial",
        sentences: [
            "An industrial look with visible joints.",
            "The industrial series borrows from old workshops.",
            "Sturdy and industrial, it can take a knock.",
        ],
    },
];

/// The brands, which only texts name.
pub(crate) const BRANDS: [&str; 20] = [
    "Alderway",
    "Brightmoor",
    "Copperline",
    "Dovetail",
    "Eastwick",
    "Fernhollow",
    "Goldfinch",
    "Harborlight",
    "Ivyside",
    "Juniper Row",
    "Kestrel",
    "Larkspur",
    "Millbrook",
    "Northbank",
    "Oakhurst",
    "Pebblecove",
    "Quillfeather",
    "Ravenswood",
    "Saltmarsh",
    "Thistledown",
];

/// Sentences about the material; `{m}` is the material, `{n}` the noun.
pub(crate) const MATERIAL_SENTENCES: [&str; 5] = [
    "The {n} is made of {m} from a small family workshop.",
    "We chose {m} because it ages well.",
    "Solid {m}, finished by hand.",
    "Good {m} needs little care: wipe it and let it dry.",
    "Every {n} starts as a piece of selected {m}.",
];

/// Sentences about the brand; `{b}` is the brand, `{n}` the noun.
pub(crate) const BRAND_SENTENCES: [&str; 4] = [
    "{b} has been making things for the home since 1974.",
    "Another {n} that {b} can be proud of.",
    "Like everything from {b}, it is inspected twice before it leaves the house.",
    "Designed and packed by {b}.",
];

/// Sentences that say nothing about the item.
pub(crate) const FILLER_SENTENCES: [&str; 8] = [
    "Ships within two working days in recycled packaging.",
    "If you are not happy with it, send it back within 30 days.",
    "A lovely present for birthdays and housewarmings.",
    "Please note that handmade goods vary slightly.",
    "Read the enclosed leaflet before first use.",
    "Order two and save on postage.",
    "Our customers gave it 4.6 out of 5 points.",
    "Questions? Write to us, we answer every letter.",
];
