"""Closed-class words and the common verbs and adjectives of photograph captions, for the rules in spans.py."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = _words(
    "a an the this that these those his her its their our my your some any each every no all both another other "
    "others such what whatever"
)
PRONOUNS = _words(
    "i you he she it we they him them me us who whom which that itself himself herself themselves someone something "
    "anyone anything everyone everything one's it's there here whose there's what where when how why"
)
CONJUNCTIONS = _words("and or but nor so as while because although though than if then also & plus")
AUXILIARIES = _words(
    "is are was were be been being am has have had do does did can could will would may might must should isn't "
    "aren't doesn't don't cannot can't get gets getting got not"
)
ADVERBS = _words(
    "very too just still almost only even ever never now already really quite away together apart alone outside "
    "outdoors indoors outdoor upside nearby overhead ahead well long-time while mostly side-by-side close-up "
    "closeup downstairs upstairs halfway once again later sideways somewhere everywhere please yet midair mid-air"
)
NOT_ADVERBS = _words("family fly jelly belly lily ally supply assembly butterfly dragonfly lady italy")
PREPOSITIONS = _words(
    "in on at by with without near under over above below beneath underneath behind beside besides between among "
    "amongst around across along against through into onto from towards toward inside off down up out past atop "
    "upon during after before within alongside outside about beyond throughout amid amidst via like for next"
)
SILENT_PREPOSITIONS = _words("of to per as")  # they bind words but say no relation of their own
PARTICLES = _words("up down out off over around away back along together through by in on at about apart")
MULTIWORD_RELATIONS = tuple(
    tuple(phrase.split())
    for phrase in (
        "on top of", "in front of", "next to", "to the left of", "to the right of", "on the left of",
        "on the right of", "on the side of", "at the side of", "by the side of", "on the back of", "in back of",
        "in the back of", "in the middle of", "in the center of", "at the end of", "at the top of",
        "at the bottom of", "on the edge of", "at the edge of", "on each side of", "on both sides of",
        "on the other side of", "in between", "close to", "near to", "out of", "inside of", "outside of",
        "off of", "away from", "up to", "up against", "on to", "in to", "full of", "made of", "made up of",
        "along side", "along side of", "along with", "as well as", "up and down", "down to", "far from",
        "side by side with", "on board", "in the process of", "on the front of", "in the front of",
        "at the base of", "across from", "because of", "instead of", "on the ends of", "over the top of",
        "on the outside of", "on the inside of", "on the corner of", "at the corner of", "underneath of",
        "next too",
    )
)  # fmt: skip
QUANTITY_NOUNS = _words(
    "group groups couple bunch pair pairs lot lots number variety assortment array collection row rows line set "
    "crowd piece pieces slice slices herd flock pile stack pack bunches team kind kinds type types part rest "
    "handful dozen dozens plenty series several"
)
NUMBERS = _words(
    "one two three four five six seven eight nine ten eleven twelve dozen hundred several many multiple various "
    "numerous few first second third single double triple half"
)
COLOURS = _words(
    "red green blue yellow purple white black brown pink gray grey orange tan beige gold golden silver teal "
    "turquoise maroon violet cream colored coloured colorful colourful multicolored multi-colored dark bright pale "
    "reddish greenish bluish blonde blond brunette"
)
ADJECTIVES = _words(
    "small large big little tiny huge giant tall short long wide narrow high low thin thick fat skinny old young "
    "new older younger elderly modern antique vintage ancient hot cold warm cool wet dry fresh clean dirty messy "
    "neat empty full open closed wooden metallic wood plastic stuffed furry fuzzy fluffy hairy shiny rusty dusty "
    "sandy snowy grassy rocky cloudy sunny rainy foggy stormy clear blurry busy crowded quiet lush leafy muddy icy "
    "hilly curly curvy wavy straight round square rectangular circular flat curved sharp steep deep shallow smooth "
    "rough soft hard heavy light-colored beautiful pretty cute nice fancy plain simple elegant lovely funny happy "
    "sad angry sleepy tired hungry silly lazy playful friendly excited wild tame male female adult baby bare "
    "shirtless barefoot naked pregnant asian american indian chinese japanese french italian german british mexican "
    "african english european urban rural residential industrial commercial public private local foreign different "
    "same similar matching several opposite separate individual electric electronic digital stainless ceramic mini "
    "miniature double-decker two-story healthy delicious tasty ripe raw rotten sweet spicy creamy cheesy crispy "
    "juicy alone asleep awake ready available visible professional military cellular polar tropical floral "
    "decorative ornate patterned striped checkered plaid spotted tiled paved lone whole entire main upper lower "
    "left right front rear top bottom back outer inner middle medium medium-sized mid-sized sized large-sized "
    "old-fashioned left-handed lit unlit free great good bad best poor rich strange odd weird unusual interesting "
    "typical traditional classic casual formal fashionable stylish famous special extra tabby calico wintry nude "
    "dim scenic picturesque aerial overcast gloomy concrete dead live alive fake real artificial rustic worn "
    "cluttered"
)
OWN_OR_NOUN = _words(  # attributes before a noun, nouns elsewhere
    "orange wood plastic metal brick stone concrete glass steel leather paper cream gold silver square adult baby "
    "female male light front back top bottom left right middle side rear tan cardboard marble tile young old "
    "stainless tabby kitchen-less rose cotton double half single dozen second live mini lower upper"
)
ING_NOUNS = _words(
    "building clothing ceiling evening morning wedding painting railing king ring wing string thing spring bedding "
    "dressing frosting icing topping siding crossing lighting awning sing lightning pudding stuffing landing "
    "seasoning housing meeting writing drawing opening reading-room bing furnishing clearing filling carving "
    "engraving viking darling stocking earring herring sibling duckling ping being during outing skiing "
    "snowboarding surfing swing"
)
ING_VERBS_TOO = _words(  # nouns above that are verbs after 'is' or a noun: "a man skiing down"
    "skiing surfing snowboarding painting writing drawing crossing opening meeting landing dressing filling lighting"
)
ING_COMPOUNDS = _words(  # first halves of compound nouns: 'parking meter', 'living room'
    "parking dining living swimming fishing cutting washing sailing serving shopping vending waiting sleeping-bag "
    "baking mixing frying rolling drinking bathing bowling boxing skating skiing running-shoes wrapping changing "
    "traveling-bag landing loading sitting-room sewing training camping boarding"
)
ED_NOUNS = _words(
    "bed shed seed weed sled speed breed need feed reed deed steed bunkbed flatbed flowerbed moped red naked"
)
PARTICIPLES = _words(
    "seen shown made taken held driven eaten cut set put worn drawn thrown hung lit sat stood ridden flown left "
    "built kept laid lain sitting caught hit spread split broken frozen bent torn woven written done given bound "
    "fed led stuck tied shot sold brought bought found fallen blown grown"
)
VERBS = _words(  # base forms; -s, -es, -ing and -ed are derived
    "sit stand hold ride walk run play look eat drink wear carry fly jump skate surf ski drive pull push throw "
    "catch hit swing kick chase watch stare gaze graze lay lie sleep rest lean hang wait talk speak smile laugh "
    "pose pet feed lick bite chew brush wash clean cook bake prepare cut slice serve pour fill cover surround "
    "contain include display show feature face park stop travel move pass cross enter leave approach arrive reach "
    "touch grab pick point wave hug kiss read write type use work try make take give get put place set pile stack "
    "line tie dress decorate perch float sail swim wade splash dive bathe roll slide glide fall climb lift raise "
    "drop toss pitch bat return attempt compete practice perform enjoy share help open close turn spin bend crouch "
    "kneel squat gather crowd huddle cluster sniff smell taste examine inspect check shop sell buy haul tow load "
    "unload board exit come go head follow lead herd guard tend milk shear groom saddle race balance grind land "
    "cruise coast paddle row steer mount attach connect plug mix stir chop peel grill fry toast boil fix repair "
    "build paint draw photograph film record shine reflect light overlook seem appear feel keep let adjust hide "
    "peek peer see find grow bloom tower stretch extend reveal scatter arrange seat stuff wrap top garnish sprinkle "
    "drizzle frost shake celebrate cheer sing dance march parade chat converse interact fight wrestle fetch nap "
    "relax lounge recline snuggle cuddle nuzzle nurse tackle block dribble shoot score have control operate hand "
    "lower pack ship dock anchor drift trot gallop roam wander stroll jog hike bike bicycle snowboard skateboard "
    "exercise stride dangle protrude stick rub scratch yawn blow burn melt steam drip flow crash break situate "
    "locate position mark label design fence vend"
)
NOUN_FIRST = _words(  # base forms that are nouns unless 'to' stands before them
    "park surf bike bicycle skateboard snowboard board ship train dock block label frost paint film record herd row "
    "coast tower light top line bat pet milk brush watch shop fence head hand face wave drink toast cook ski skate "
    "pack crowd type display race place set slice pile stack fly ride mark design seat dress land shower check "
    "nurse saddle bloom cluster plug fish plant steam control exercise dive score fight nap dance parade shoot "
    "grill lounge"
)
PLURAL_PEOPLE = _words("people men women children cattle sheep kids geese deer police couple group")

CLOSED = DETERMINERS | PRONOUNS | CONJUNCTIONS | AUXILIARIES | ADVERBS | PREPOSITIONS | SILENT_PREPOSITIONS
QUALITIES = COLOURS | ADJECTIVES
MODIFIERS = QUALITIES | NUMBERS | QUANTITY_NOUNS
ING_ANY_NOUN = ING_NOUNS | ING_COMPOUNDS
FIXED_NOUNS = {("hot", "dog"), ("hot", "dogs"), ("french", "fries"), ("double", "decker"), ("teddy", "bear")}
