"""How each language says a small sum. Data only; ``arithmetic`` decides what is said."""

from __future__ import annotations

from dataclasses import dataclass

from lit_cpt.microworld.vocabulary import words


@dataclass(frozen=True)
class Language:
    """Phrases of one language; the pairs are (addition, subtraction).

    Placeholders: ``{name}``, ``{thing}``, ``{a}``, ``{b}`` and, where the result is said, ``{result}``.

    Attributes:
        people: Names that may stand for ``{name}``.
        things: Countable things that may stand for ``{thing}``.
        short: The bare sum as a sentence.
        story: The word problem without its question.
        statement: The end of a story that states the result.
        question: The end of a story that asks for the result.
        reply: The answer to ``question`` as a sentence.
        question_cue: What a question and answer document begins with.
        answer_cue: What comes before the bare number.
    """

    people: tuple[str, ...]
    things: tuple[str, ...]
    short: tuple[str, str]
    story: tuple[str, str]
    statement: str
    question: str = ""
    reply: str = ""
    question_cue: str = ""
    answer_cue: str = ""


LANGUAGES = {
    "es": Language(
        people=words("Ana Luis Marta Pablo Elena Diego Carmen Jorge Lucía Raúl Rosa Iván"),
        things=words("manzanas peras monedas flores cartas naranjas piedras cajas"),
        short=(" {a} más {b} son {result}.", " {a} menos {b} son {result}."),
        story=("{name} tiene {a} {thing}. Compra {b} más.", "{name} tiene {a} {thing}. Pierde {b}."),
        statement=" Ahora tiene {result} {thing}.",
        question=" ¿Cuántas {thing} tiene ahora?",
        reply=" Tiene {result}.",
        question_cue="Pregunta: ",
        answer_cue="\nRespuesta:",
    ),
    "ja": Language(
        people=words(
            "さくらさん けんさん ゆいさん たろうさん はなさん じろうさん "
            "みかさん ようすけさん あきさん りょうさん まりさん そうたさん"
        ),
        things=words("りんご みかん たまご かばん もも いし はこ ボール"),
        short=(" {a} 足す {b} は {result} です。", " {a} 引く {b} は {result} です。"),
        story=(
            "{name}は{thing}を {a} 個持っています。 {b} 個買いました。",
            "{name}は{thing}を {a} 個持っています。 {b} 個なくしました。",
        ),
        statement="今は {result} 個あります。",
        question="今は何個ありますか？",
        reply=" {result} 個です。",
        question_cue="問題: ",
        answer_cue="\n答え:",
    ),
    "th": Language(
        people=words("นิด สมชาย แก้ว มาลี ดาว วิชัย พร ก้อย เอก ฟ้า บุญ ตาล"),
        things=words("ส้ม มะม่วง ไข่ กล้วย มังคุด หิน กล่อง ลูกแก้ว"),
        short=(" {a} บวก {b} เท่ากับ {result}", " {a} ลบ {b} เท่ากับ {result}"),
        story=("{name}มี{thing} {a} ชิ้น ซื้อเพิ่ม {b} ชิ้น ", "{name}มี{thing} {a} ชิ้น ทำหาย {b} ชิ้น "),
        statement="ตอนนี้มี {result} ชิ้น",
        question="ตอนนี้มีกี่ชิ้น?",
        reply=" มี {result} ชิ้น",
        question_cue="คำถาม: ",
        answer_cue="\nคำตอบ:",
    ),
}

# English sums stand on the web only; nothing is asked in English, so the question phrases stay empty.
ENGLISH = Language(
    people=("Tom", "Lucy", "Sam", "Nora", "Ben", "Ivy"),
    things=("apples", "pears", "coins", "cards", "stones"),
    short=(" {a} plus {b} is {result}.", " {a} minus {b} is {result}."),
    story=("{name} has {a} {thing}. {name} buys {b} more.", "{name} has {a} {thing}. {name} loses {b}."),
    statement=" Now {name} has {result} {thing}.",
)
