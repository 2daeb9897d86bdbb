"""The tables behind the generator: templates, phrases, flows and facts of an invented payments company.

Everything here is made up. Two small notations keep the tables short:

* a phrase is a grammar: `[a|b|]` picks one option, `[word]` with no bar picks from `MACROS["word"]`, and `{fact}`
  is filled with the case's fact of that name;
* a script is a list of steps: an `UPPER_CASE` step is a template that the advocate sends, a step with ` -> ` is a
  system lookup and its result, any other step names what the customer says (a key of `PHRASES`), and a tuple forks
  into one of several scripts, the likeliest first.
"""

from typing import Any

Step = str | tuple[list[Any], ...]  # a fork holds scripts in turn; checkers at run time follow no recursion
Script = list[Step]

TEMPLATES: dict[str, str] = {
    # every conversation
    "GREETING": "Hi there, thank you for reaching out to Pennywren. I would be happy to help you with this today.",
    "GREETING_NAME": "Hello {name}, my name is {advocate} and I am here to help. Thanks for writing in!",
    "GREETING_SORRY": "Hi {name}, this is {advocate}. I am sorry for the trouble. Let us get this sorted out together.",
    "ANYTHING_ELSE": "Is there anything else I can help you with today?",
    "ANYTHING_ELSE_CHECK": "Glad to help! Before I go, did I answer all of your questions?",
    "GOODBYE": "Thank you for contacting Pennywren. Have a wonderful day!",
    "GOODBYE_CARE": "It was a pleasure helping you, {name}. Take care, and write to us any time.",
    "GOODBYE_SURVEY": (
        "Thanks for chatting with me. You may get a short survey about today; your answers help us a lot."
    ),
    "GOODBYE_SURVEY_2023": (
        "Thanks for chatting. Please rate this chat with one to five stars in the email we send you."
    ),
    "LOOKING_INTO_IT": "Thank you for that. Please give me a moment while I look into this for you.",
    "ONE_MOMENT": "One moment please, I am pulling up your account now.",
    "APOLOGY_FRUSTRATION": "I understand how frustrating this is, and I am sorry that we let you down here.",
    "APOLOGY_PATIENCE": "I hear you, and I appreciate your patience. I know this is not the answer you hoped for.",
    "TAKE_YOUR_TIME": "No rush at all, take your time. I will be right here when you are ready.",
    "STILL_THERE": "Are you still with me? I want to make sure we get this solved for you.",
    "CLOSING_IDLE": "Since I have not heard back, I will close this chat for now. Reply here to open it again.",
    "WHY_WE_ASK": "Good question. We ask so that we can be sure we look at the right account and keep it safe.",
    "I_AM_A_PERSON": "I am a real person on the support team, and I am reading everything you write.",
    "SWITCH_TOPIC": "No problem at all, let us look at that instead.",
    "ONE_MORE_TOPIC": "Of course, I can help with that as well.",
    "ESCALATE_SUPERVISOR": "I have passed this chat to a supervisor, who will write to you within one business day.",
    "CLARIFY_ISSUE": "I want to be sure that I understand. Could you tell me a bit more about what happened?",
    # questions
    "ASK_AMOUNT": "Could you tell me the exact amount of the payment?",
    "ASK_RECIPIENT": "Who was the payment sent to? A name or their pennytag is fine.",
    "ASK_DATE": "On what date did this take place?",
    "ASK_MERCHANT": "What is the name of the merchant, as shown in your activity?",
    "ASK_CARD_LAST_FOUR": "Please confirm the last four digits of your Pennywren card.",
    "ASK_EMAIL": "What is the email address on your account?",
    "ASK_ZIP": "For your security, please confirm the ZIP code on your account.",
    "ASK_ERROR_TEXT": "What does the error message say, word for word?",
    "ASK_EMPLOYER": "Which employer or payroll company sends the deposit?",
    "ASK_BANK": "Which bank is linked to your account for this?",
    "ASK_NEW_ADDRESS": "What is your new address, with the ZIP code?",
    "ASK_CLOSING_REASON": "I am sorry to see you go. May I ask why you would like to close the account?",
    # transfers
    "TRANSFER_INSUFFICIENT_FUNDS": (
        "The transfer of {amount} failed since your balance was too low. You were not charged."
    ),
    "TRANSFER_FUNDS_ON_HOLD": (
        "Your balance is {balance}, but {amount} of it is on hold. It frees up within three days."
    ),
    "TRANSFER_BANK_DECLINED": "{bank} declined this transfer. Please ask them to allow Pennywren, then try again.",
    "TRANSFER_PENDING": "Your transfer is still pending. It should complete by {due}; there is nothing you need to do.",
    "TRANSFER_PENDING_WATCH": (
        "The transfer is on its way. You can follow it under Activity, and we notify you on arrival."
    ),
    "TRANSFER_CANNOT_CANCEL": "A transfer that is on its way cannot be cancelled, but the recipient can send it back.",
    "TRANSFER_BLOCKED_SECURITY": "We paused this payment to protect you. Please confirm in the app that it was you.",
    "TRANSFER_COMPLETED": "I can see that this transfer has arrived. Please ask {recipient} to refresh their activity.",
    "TRANSFER_RETRY_STEPS": "To try again, open Activity, tap the failed payment and choose Send again.",
    # refunds
    "REFUND_NOT_SENT": "{merchant} has not sent us this refund yet. Please ask them for a refund receipt.",
    "REFUND_PROCESSING": "The refund of {amount} from {merchant} is being processed and should post by {due}.",
    "REFUND_TO_BALANCE": "Good news: the refund of {amount} was added to your Pennywren balance on {date}.",
    "REFUND_TO_OLD_CARD": "The refund went to your earlier card. It reaches your balance by itself within two days.",
    "REFUND_RECEIPT_RECEIVED": (
        "Thank you, I added your receipt to the file. We will trace the refund within five days."
    ),
    # cards
    "CARD_LOCKED": "I have locked the card ending in {last_four}, so nobody can use it.",
    "CARD_LOCKED_SAFE": "Your card is now frozen and your money is safe. New charges on it will be declined.",
    "CARD_REPLACEMENT_SHIPPED": "Your new card is on its way to the address on file. It takes five to seven days.",
    "CARD_UNLOCK_STEPS": "If it turns up, open the Card tab and tap Unlock to use it again.",
    "CARD_EXPEDITE": "We can send it by courier in two days for $12.00. Would you like that?",
    "CARD_TRACKING": "Your card was mailed on {date} and should be with you shortly. Mail can take ten business days.",
    "CARD_RETURNED_MAIL": "The mail carrier returned your card to us, so we need to check your address first.",
    "CARD_STOLEN_REVIEW": "Please look through your recent activity and tell me about any charge that is not yours.",
    # sign-in
    "LOGIN_RESET_LINK": "I have sent a link to {email}. It lets you set a new password and is valid for one hour.",
    "LOGIN_NEW_CODE": "Please ask for a new code now, wait one minute, and enter only the newest one.",
    "LOGIN_OLD_PHONE": "As the old number is gone, tap No access to this phone on the sign-in page to prove it is you.",
    "LOGIN_LOCKED": "Too many tries have locked sign-in for 24 hours. It opens again by itself.",
    "LOGIN_UPDATE_APP": "Your app is an older version. Please update it in the store, then restart your phone.",
    # cashing out
    "CASHOUT_STANDARD_TIME": "Standard cash-outs to {bank} take one to three business days. Yours is due by {due}.",
    "CASHOUT_INSTANT_FAILED": (
        "{bank} refused the instant deposit, so it went out as a standard one. The fee is returned."
    ),
    "CASHOUT_BANK_HOLIDAY": "Banks were closed for a holiday, so your cash-out will arrive one business day later.",
    "CASHOUT_WRONG_BANK": (
        "This went to a bank account you removed. If it is closed, the money returns within ten days."
    ),
    # disputes
    "DISPUTE_OPENED": "I have opened a dispute for {amount} at {merchant}. We will write to you within ten days.",
    "DISPUTE_OPENED_FORM": "Your dispute is filed. Please fill in the form I sent to {email} so that we can start.",
    "DISPUTE_PENDING_CHARGE": "This charge is still pending and may drop off. We can dispute it once it has posted.",
    "DISPUTE_SUBSCRIPTION": "This is a subscription. Please cancel with {merchant} first; I can block further charges.",
    "DISPUTE_PROVISIONAL_CREDIT": "While we look into it, you will get a provisional credit of {amount}.",
    "DISPUTE_TOO_OLD": "This charge is more than 120 days old, which is past the time limit for a dispute.",
    # identity
    "VERIFY_STEPS": "To verify, open Profile, tap Identity, and follow the steps with your ID at hand.",
    "VERIFY_BLURRY_PHOTO": (
        "The photo of your ID was blurry. Please take it again in good light, with all corners visible."
    ),
    "VERIFY_NAME_MISMATCH": (
        "The name on your ID differs from your profile. Please correct your profile, then try again."
    ),
    "VERIFY_APPROVED": "Your identity is verified. Please close the app and open it again to see the change.",
    "VERIFY_IN_REVIEW": "Your documents are in review. This takes up to 48 hours and we will email you.",
    # deposits
    "DEPOSIT_ACCOUNT_NUMBERS": "Open the Money tab and tap Direct deposit to see your routing and account number.",
    "DEPOSIT_NOT_SENT": "We have not received a deposit from {employer}. Please ask payroll for the date and a trace.",
    "DEPOSIT_EARLY": "Your deposit came early before; that depends on when {employer} sends the file.",
    "DEPOSIT_RETURNED": "The deposit from {employer} was returned, as the account number did not match.",
    # fees
    "FEE_INSTANT": "Instant cash-outs cost 1.5 percent. Standard ones are free and take one to three days.",
    "FEE_ATM": "Cash machines cost $2.50 each time. The fee is waived in months with a direct deposit of $300.00.",
    "FEE_ATM_2023": "Cash machines cost $2.00 each time. There is no fee at machines with our sign.",
    "FEE_FOREIGN": "Charges in another currency carry a fee of 2 percent, shown as its own line.",
    "FEE_CREDIT_CARD": "Sending from a credit card costs 3 percent. Choose your balance or bank to send for free.",
    "FEE_REFUNDED": "As a courtesy I have returned this fee to your balance.",
    "FEE_FINAL": "I checked, and this fee was charged correctly, so I cannot return it this time.",
    # profile
    "PHONE_CHANGE_STEPS": "To change your number, open Profile, tap Phone, and enter the code we send to the new one.",
    "ADDRESS_UPDATED": "I have updated your address to {address}.",
    "EMAIL_CHANGE_STEPS": "To change your email, open Profile, tap Email, and confirm the link that we send.",
    # limits
    "LIMIT_VERIFY_TO_RAISE": "Your limit goes up to $7,500.00 a week once you have verified your identity.",
    "LIMIT_WEEKLY_RESET": "You have reached your weekly limit. It resets on {due}.",
    "LIMIT_AT_MAX": "Your account already has the highest limit that we offer.",
    # closing the account
    "CLOSE_BALANCE_FIRST": "You still have {balance} in your account. Please cash it out first, then I can close it.",
    "CLOSE_CONFIRMED": "Your account is closed. You can download your statements for another 90 days.",
    "CLOSE_STAY_OFFER": "I can waive your fees for three months if you would like to stay. How does that sound?",
    # tax
    "TAX_FORM_STEPS": "Your form is under Profile, Documents. Forms for last year are there from the end of January.",
    "TAX_FORM_BY_MAIL": "Your tax form was mailed to the address on file.",
    "TAX_NOT_REQUIRED": "Your account has no form for this year, as your sales were below the reporting limit.",
    "TAX_FORM_CORRECTION": "I have asked the tax team for a corrected form. It will be ready in ten business days.",
    # payments to the wrong person, and scams
    "WRONG_PERSON_REQUEST": (
        "Please tap Request on the payment to ask {recipient} for the money. We cannot pull it back."
    ),
    "WRONG_PERSON_CANCELLED": "They had not claimed it yet, so I cancelled the payment. You have your {amount} back.",
    "SCAM_WARNING": "This looks like a scam. Please block this person and share no codes; I have reported the account.",
    # bonus
    "BONUS_PENDING": "Your bonus is on its way. It posts within seven days of your friend's first payment.",
    "BONUS_NOT_ELIGIBLE": "The bonus is only for new customers, and this friend had an account before.",
}

INACTIVE = frozenset({"GOODBYE_SURVEY_2023", "FEE_ATM_2023", "TAX_FORM_BY_MAIL"})

# What was sent before the day of retirement in place of today's template.
PREDECESSORS = {"GOODBYE_SURVEY": "GOODBYE_SURVEY_2023", "FEE_ATM": "FEE_ATM_2023"}

# Templates that serve the same purpose; which one is sent is the advocate's habit.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "GREETING": ("GREETING", "GREETING_NAME", "GREETING_SORRY"),
    "ANYTHING_ELSE": ("ANYTHING_ELSE", "ANYTHING_ELSE", "ANYTHING_ELSE_CHECK"),
    "GOODBYE": ("GOODBYE", "GOODBYE_CARE", "GOODBYE_SURVEY"),
    "LOOKING_INTO_IT": ("LOOKING_INTO_IT", "ONE_MOMENT", "LOOKING_INTO_IT"),
    "APOLOGY_FRUSTRATION": ("APOLOGY_FRUSTRATION", "APOLOGY_PATIENCE", "APOLOGY_FRUSTRATION"),
    "TRANSFER_PENDING": ("TRANSFER_PENDING", "TRANSFER_PENDING", "TRANSFER_PENDING_WATCH"),
    "CARD_LOCKED": ("CARD_LOCKED_SAFE", "CARD_LOCKED", "CARD_LOCKED"),
    "DISPUTE_OPENED": ("DISPUTE_OPENED", "DISPUTE_OPENED_FORM", "DISPUTE_OPENED"),
}

# What the customer says to each question.
QUESTIONS = {
    "ASK_AMOUNT": "gives_amount",
    "ASK_RECIPIENT": "gives_recipient",
    "ASK_DATE": "gives_date",
    "ASK_MERCHANT": "gives_merchant",
    "ASK_CARD_LAST_FOUR": "gives_card",
    "ASK_EMAIL": "gives_email",
    "ASK_ZIP": "gives_zip",
    "ASK_EMPLOYER": "gives_employer",
    "ASK_BANK": "gives_bank",
    "ASK_NEW_ADDRESS": "gives_address",
    "ASK_CLOSING_REASON": "gives_closing_reason",
}

# Said on the way to another flow, and the template that follows.
SWITCHES = {"changes_mind": "SWITCH_TOPIC", "one_more": "ONE_MORE_TOPIC"}

IDLE = "watch_chat() -> no reply for [4|5|6|8] minutes"

# What may come between a question and its answer.
DIGRESSIONS: tuple[Script, ...] = (
    ["wait", "TAKE_YOUR_TIME"],
    ["changes_mind"],
    ["asks_why", "WHY_WE_ASK"],
    [IDLE, "STILL_THERE"],
    ["asks_if_person", "I_AM_A_PERSON"],
    ["upset", "APOLOGY_FRUSTRATION"],
)

WRAP_UP: tuple[Script, ...] = (
    ["thanks", "ANYTHING_ELSE", "no_more", "GOODBYE"],
    ["thanks_done", "GOODBYE"],
    ["upset", "APOLOGY_FRUSTRATION", "thanks", "ANYTHING_ELSE", "no_more", "GOODBYE"],
    ["thanks", "ANYTHING_ELSE", "one_more"],
    [IDLE, "ANYTHING_ELSE", IDLE, "CLOSING_IDLE"],
    [],
    ["upset", "APOLOGY_FRUSTRATION", "asks_supervisor", "ESCALATE_SUPERVISOR", "thanks_done", "GOODBYE"],
    ["thanks", "ANYTHING_ELSE", IDLE, "CLOSING_IDLE"],
)

_TRANSFER = "lookup_transfer(amount={amount}) -> id={number}, "
_REFUND = "lookup_refund(merchant={merchant}, amount={amount}) -> "
_CARD = "lookup_card(last_four={last_four}) -> "
_LOGIN = "lookup_sign_in(email={email}) -> "
_CASHOUT = "lookup_cash_out(bank={bank}) -> id={number}, amount={amount}, "
_CHARGE = "lookup_charge(merchant={merchant}, amount={amount}) -> "
_IDENTITY = "lookup_identity(email={email}) -> "
_DEPOSIT = "lookup_deposits(employer={employer}) -> "
_ACCOUNT = "lookup_account(zip={zip}) -> "

_LOCK = "lock_card(last_four={last_four}) -> locked"

# Each flow by what the customer opens it with, the most frequent first.
FLOWS: dict[str, Script] = {
    "transfer_failed": [
        "ASK_AMOUNT",
        "ASK_RECIPIENT",
        (
            [
                _TRANSFER + "status=failed, reason=[insufficient funds|balance too low]",
                "TRANSFER_INSUFFICIENT_FUNDS",
                (
                    ["asks_retry", "TRANSFER_RETRY_STEPS"],
                    ["has_money", "lookup_balance() -> total={balance}, held={amount}", "TRANSFER_FUNDS_ON_HOLD"],
                    [],
                ),
            ],
            [
                _TRANSFER + "status=pending, due={due}",
                "TRANSFER_PENDING",
                ([], ["asks_cancel", "TRANSFER_CANNOT_CANCEL"]),
            ],
            [_TRANSFER + "status=failed, reason=declined by {bank}", "TRANSFER_BANK_DECLINED"],
            [
                _TRANSFER + "status=held, reason=[risk review|unusual activity]",
                "TRANSFER_BLOCKED_SECURITY",
                (["confirmed_it", "TRANSFER_RETRY_STEPS"], []),
            ],
            [_TRANSFER + "status=completed, date={date}", "TRANSFER_COMPLETED"],
        ),
    ],
    "refund_missing": [
        "ASK_MERCHANT",
        "ASK_AMOUNT",
        (
            [_REFUND + "status=processing, due={due}", "REFUND_PROCESSING"],
            [
                _REFUND + "[none found|no matching refund]",
                "REFUND_NOT_SENT",
                (["has_receipt", "REFUND_RECEIPT_RECEIVED"], []),
            ],
            [_REFUND + "status=posted, to=balance, date={date}", "REFUND_TO_BALANCE"],
            [_REFUND + "status=posted, to=replaced card", "REFUND_TO_OLD_CARD"],
        ),
    ],
    "card_lost": [
        "ASK_CARD_LAST_FOUR",
        _LOCK,
        "CARD_LOCKED",
        (
            ["wants_new_card", "CARD_REPLACEMENT_SHIPPED", ([], ["asks_faster", "CARD_EXPEDITE", "says_yes"])],
            ["may_find_it", "CARD_UNLOCK_STEPS"],
        ),
    ],
    "login_problem": [
        "ASK_EMAIL",
        (
            [_LOGIN + "last_error=wrong password, tries={digit}", "LOGIN_RESET_LINK"],
            [_LOGIN + "last_error=code expired", "LOGIN_NEW_CODE", ([], ["lost_number", "LOGIN_OLD_PHONE"])],
            [_LOGIN + "state=locked, tries=10", "LOGIN_LOCKED"],
            ["ASK_ERROR_TEXT", "reads_version_error", "LOGIN_UPDATE_APP"],
        ),
    ],
    "cashout_delay": [
        "ASK_BANK",
        "ASK_DATE",
        (
            [
                _CASHOUT + "speed=standard, due={due}",
                "CASHOUT_STANDARD_TIME",
                ([], ["asks_fee_instant", "FEE_INSTANT"]),
            ],
            [_CASHOUT + "speed=instant, status=refused, sent as standard", "CASHOUT_INSTANT_FAILED"],
            [_CASHOUT + "speed=standard, delay=bank holiday", "CASHOUT_BANK_HOLIDAY"],
            [_CASHOUT + "status=sent, account=[removed|no longer linked]", "CASHOUT_WRONG_BANK"],
        ),
    ],
    "unknown_charge": [
        "ASK_MERCHANT",
        "ASK_AMOUNT",
        (
            [
                _CHARGE + "status=posted, days_ago={digit}",
                "DISPUTE_OPENED",
                ([], ["asks_credit", "DISPUTE_PROVISIONAL_CREDIT"]),
            ],
            [_CHARGE + "status=pending", "DISPUTE_PENDING_CHARGE"],
            [_CHARGE + "status=posted, recurring=monthly", "DISPUTE_SUBSCRIPTION"],
            [_CHARGE + "status=posted, days_ago=1[2|3|4|5]{digit}", "DISPUTE_TOO_OLD"],
        ),
    ],
    "verify_problem": [
        (
            [
                "ASK_EMAIL",
                (
                    [_IDENTITY + "status=rejected, reason=[unreadable|low quality] image", "VERIFY_BLURRY_PHOTO"],
                    [_IDENTITY + "status=review, since={date}", "VERIFY_IN_REVIEW"],
                    [_IDENTITY + "status=rejected, reason=name differs", "VERIFY_NAME_MISMATCH"],
                    [_IDENTITY + "status=approved", "VERIFY_APPROVED"],
                ),
            ],
            ["CLARIFY_ISSUE", "never_started_verifying", "VERIFY_STEPS"],
        ),
    ],
    "deposit_missing": [
        "ASK_EMPLOYER",
        "ASK_DATE",
        (
            [_DEPOSIT + "none received this month", "DEPOSIT_NOT_SENT"],
            [_DEPOSIT + "last={date}, usual=two days early", "DEPOSIT_EARLY"],
            [
                _DEPOSIT + "status=returned, reason=account number",
                "DEPOSIT_RETURNED",
                "asks_numbers",
                "DEPOSIT_ACCOUNT_NUMBERS",
            ],
        ),
    ],
    "card_stolen": [
        "ASK_CARD_LAST_FOUR",
        _LOCK,
        "CARD_LOCKED",
        "CARD_STOLEN_REVIEW",
        (
            ["no_strange_charges", "CARD_REPLACEMENT_SHIPPED"],
            [
                "found_strange_charge",
                _CHARGE + "status=posted, days_ago=1",
                "DISPUTE_OPENED",
                "CARD_REPLACEMENT_SHIPPED",
            ],
        ),
    ],
    "fee_question": [
        (
            ["fee_was_instant", "FEE_INSTANT"],
            ["fee_was_atm", "FEE_ATM"],
            ["fee_was_foreign", "FEE_FOREIGN"],
            ["fee_was_credit_card", "FEE_CREDIT_CARD"],
        ),
        (
            [],
            ["asks_fee_back", "lookup_courtesy() -> used=0", "FEE_REFUNDED"],
            ["asks_fee_back", "lookup_courtesy() -> used=2, limit=2", "FEE_FINAL"],
        ),
    ],
    "card_not_arrived": [
        "ASK_ZIP",
        (
            [_CARD + "mailed={date}", "CARD_TRACKING"],
            [
                _CARD + "status=returned by carrier",
                "CARD_RETURNED_MAIL",
                "ASK_NEW_ADDRESS",
                "ADDRESS_UPDATED",
                "CARD_REPLACEMENT_SHIPPED",
            ],
        ),
    ],
    "wrong_person": [
        "ASK_AMOUNT",
        "ASK_RECIPIENT",
        (
            [_TRANSFER + "status=completed, date={date}", "WRONG_PERSON_REQUEST"],
            [_TRANSFER + "status=unclaimed", "WRONG_PERSON_CANCELLED"],
            ["was_scammed", "SCAM_WARNING"],
        ),
    ],
    "change_phone": ["ASK_ZIP", _ACCOUNT + "match=yes", "PHONE_CHANGE_STEPS", ([], ["lost_number", "LOGIN_OLD_PHONE"])],
    "change_address": ["ASK_ZIP", _ACCOUNT + "match=yes", "ASK_NEW_ADDRESS", "ADDRESS_UPDATED"],
    "raise_limit": [
        (
            [
                "lookup_limit() -> verified=no, used={amount}",
                "LIMIT_VERIFY_TO_RAISE",
                ([], ["asks_how_verify", "VERIFY_STEPS"]),
            ],
            ["lookup_limit() -> verified=yes, used=all, resets={due}", "LIMIT_WEEKLY_RESET"],
            ["lookup_limit() -> verified=yes, tier=highest", "LIMIT_AT_MAX"],
        ),
    ],
    "direct_deposit_setup": ["DEPOSIT_ACCOUNT_NUMBERS", ([], ["asks_early", "DEPOSIT_EARLY"])],
    "close_account": [
        "ASK_CLOSING_REASON",
        (
            [
                _ACCOUNT + "balance={balance}",
                "CLOSE_BALANCE_FIRST",
                ([], ["cashed_out", _ACCOUNT + "balance=$0.00", "CLOSE_CONFIRMED"]),
            ],
            [_ACCOUNT + "balance=$0.00, fees=high", "CLOSE_STAY_OFFER", (["says_no", "CLOSE_CONFIRMED"], ["says_yes"])],
            [_ACCOUNT + "balance=$0.00, fees=none", "CLOSE_CONFIRMED"],
        ),
    ],
    "change_email": ["ASK_ZIP", _ACCOUNT + "match=yes", "EMAIL_CHANGE_STEPS"],
    "tax_form": [
        (
            ["lookup_tax() -> form=ready", "TAX_FORM_STEPS", ([], ["tax_form_wrong", "TAX_FORM_CORRECTION"])],
            ["lookup_tax() -> form=not required", "TAX_NOT_REQUIRED"],
        ),
    ],
    "bonus_missing": [
        "ASK_RECIPIENT",
        (
            ["lookup_bonus(friend={recipient}) -> state=pending", "BONUS_PENDING"],
            ["lookup_bonus(friend={recipient}) -> state=refused, reason=earlier account", "BONUS_NOT_ELIGIBLE"],
        ),
    ],
}

MACROS: dict[str, str] = {
    "please": (
        "Please help.|Can you help me?|What should I do?|What now?|How do I fix this?|Can you look into it?||"
        "Any idea why?"
    ),
    "when": (
        "yesterday|today|last night|this morning|on Monday|two days ago|earlier|over the weekend|last week|on {date}"
    ),
    "hi": "Hi,|Hello,|Hey,|Good morning,|Hi there,||||Hey there,|Ok so",
    "sum": "{amount}|{amount}|the {amount}|my money|a payment|some money",
    "card": "card|card|debit card|Pennywren card|cash card",
    "cant": "can't|cannot|am not able to|am unable to|still can't",
    "ask": "Can you tell me|Could you tell me|I need to know|I want to know|Do you know|Just wondering",
    "so": "so|and|and now|but",
    "sure": "Sure,|Yes,|Ok,|Yeah,|Of course,||||Here you go:",
    "want": "I need to|I want to|I would like to|How do I|How can I|Can you help me|I'm trying to",
}

PHRASES: dict[str, tuple[str, ...]] = {
    # openings
    "transfer_failed": (
        (
            "[hi] I [tried to send|was sending] [sum] to [my friend|my sister|a friend|{recipient}] [when] [so] it "
            "[failed|did not go through|won't go through|got rejected]. [please]"
        ),
        (
            "[hi] my [payment|transfer|transaction] [keeps failing|failed|won't go through|is stuck|never arrived]. "
            "[please]"
        ),
        (
            "[Why|How come] [did my transfer fail|was my payment declined|"
            "is my payment not going through]? I sent it [when]."
        ),
        (
            "[hi] {recipient} [never got|didn't get|has not received|is still waiting for] the money I sent [when]. "
            "[please]"
        ),
        (
            "[It says|The app says] [payment failed|transfer unsuccessful|something went wrong] [every time|whenever|"
            "each time] I [send money|try to pay someone|pay {recipient}]. [please]"
        ),
    ),
    "refund_missing": (
        (
            "[hi] I [returned something|sent back an order|cancelled an order] [when] [so] the refund [is not here|"
            "never came|hasn't shown up]. [please]"
        ),
        (
            "[Where is|What happened to|When do I get] my refund? [It was promised|They told me it was sent|"
            "I returned it] [when]."
        ),
        (
            "[hi] {merchant} [says|told me|claims] they [refunded me|gave my money back|processed a refund] [when] "
            "[but|and] I [don't see it|have nothing|never received it]. [please]"
        ),
        (
            "[hi] I'm [still waiting on|missing|waiting for] [a refund|money back] from [a store|a shop|{merchant}]."
            " [please]"
        ),
    ),
    "card_lost": (
        "[hi] I [lost|misplaced|can't find|seem to have lost] my [card] [when]. [please]",
        "[hi] my [card] [is missing|is gone|went missing|fell out of my pocket] [when]. [please]",
        (
            "[hi] [I think I|I must have] [left|dropped|forgot] my [card] [at a store|on the bus|in a taxi|"
            "somewhere] [when]. [please]"
        ),
        "[Lost|Missing] [card]. [Can you block it?|Can you lock it?|I need it turned off.|What now?]",
    ),
    "card_stolen": (
        "[hi] [somebody|someone|a thief] [stole|took|ran off with] my [card|wallet|purse|bag] [when]. [please]",
        (
            "[hi] my [card|wallet|purse] [was stolen|got stolen|was taken] [when] [at the gym|on the train|at work|"
            "]. [please]"
        ),
        "I [got robbed|was robbed|was pickpocketed] [when] and they have my [card]. [please]",
    ),
    "card_not_arrived": (
        (
            "[hi] I ordered [a|my] [card] [weeks ago|a month ago|last month] [so] it [has not arrived|never came|"
            "is not here]. [please]"
        ),
        (
            "[Where is|When will I get|How long for] my new [card]? I [ordered|requested] it [weeks ago|a while ago|"
            "ages ago]."
        ),
        "[hi] still no [card] in the mail. [please]",
    ),
    "login_problem": (
        "[hi] I [cant] [log in|sign in|get into my account|access my account]. [please]",
        (
            "[hi] I'm [locked out|logged out] [of my account|of the app|] [since yesterday|all day|"
            "and it won't let me back in]. [please]"
        ),
        (
            "[The app|It|Your site] [won't let me in|keeps kicking me out|says my login is wrong|"
            "does not accept my password]. [please]"
        ),
        (
            "[I forgot my password|My code is not working|I got a new phone] [so] I [cant] [sign in|log in|get in]. "
            "[please]"
        ),
    ),
    "cashout_delay": (
        (
            "[hi] I [cashed out|moved my balance to my bank|withdrew money] [when] [so] it's [not in my bank|"
            "not there yet|still missing]. [please]"
        ),
        "[How long|How many days] does [a cash out|a withdrawal|moving money to my bank] take? I did mine [when].",
        (
            "[Where is|What's up with] my [cash out|withdrawal|bank deposit]? [It's been days.|"
            "It was supposed to be instant.|I did it {date}.]"
        ),
        "[hi] my [cash-out|withdrawal] [is late|is delayed|hasn't arrived|never hit my bank]. [please]",
    ),
    "unknown_charge": (
        (
            "[hi] there is a charge [I don't recognize|I didn't make|that isn't mine|I never approved] [on my card|"
            "on my account|in my activity]. [please]"
        ),
        (
            "[What is this charge|Who charged me|Why was I charged]? [I did not buy anything.|I never authorized it.|"
            "I don't know this store.]"
        ),
        (
            "[hi] I [want to|need to|would like to] [dispute|report|contest] a [charge|purchase|transaction] from "
            "[when]. [please]"
        ),
        (
            "[hi] {merchant} [charged me twice|overcharged me|took money from me] [when] and [I want it back|"
            "I never agreed|they won't answer]. [please]"
        ),
    ),
    "verify_problem": (
        "[hi] I [cant] [verify my identity|verify my account|get verified]. [please]",
        "[It|The app|Your system] keeps [rejecting|refusing|failing] my [ID|license|passport|documents]. [please]",
        "[Why|How come] [is my account not verified|am I still not verified|was my ID rejected]? [please]",
        (
            "[hi] [the app asks me to verify|it wants my ID|it says verification needed] [so] [it does not work|"
            "I'm stuck]. [please]"
        ),
    ),
    "deposit_missing": (
        "[hi] my [paycheck|direct deposit|salary|pay] [is not here|didn't come|is late|never arrived]. [please]",
        (
            "[Where is|When will I get] my [paycheck|direct deposit|wages]? [My coworkers got theirs.|"
            "It normally comes early.|It was due [when].]"
        ),
        "[hi] I was supposed to [get paid|receive my paycheck] [when] [so] [nothing came|there's nothing]. [please]",
    ),
    "direct_deposit_setup": (
        "[want] [set up direct deposit|get my paycheck here|have my salary paid in]?",
        (
            "[Where|How] do I [find|see] my [routing number|account number|account and routing number]? "
            "[It's for my job.|My boss needs it.|]"
        ),
    ),
    "fee_question": (
        "[hi] [why was I charged a fee|what is this fee|why is there a fee]? It was [when].",
        "[hi] you [took|charged me] a fee [when]. [please]",
        "[ask] [why there is a fee|what this fee is for|what the extra charge is] on my [account|statement]?",
    ),
    "wrong_person": (
        "[hi] I [sent|paid] [sum] to the wrong [person|account|tag] [when]. [please]",
        (
            "[hi] I [need|want] to [cancel|undo|take back|reverse] a payment [I sent by mistake|"
            "to someone I don't know]. [please]"
        ),
        "[hi] I [accidentally|mistakenly] [sent|paid] [sum] [twice|to a stranger|to someone else]. [please]",
    ),
    "change_phone": (
        "[want] [change|update|replace] my [phone number|number|cell number]? [I have a new one.|My old one is off.|]",
        "[hi] I [got|have] a new [phone number|number] and [need it on my account|the app has the old one]. [please]",
    ),
    "change_address": (
        "[want] [change|update] my [address|mailing address|home address]? [I moved.|We just moved.|]",
        "[hi] I [just moved|moved|am moving] [so|and] my address [is wrong|needs an update|is out of date]. [please]",
    ),
    "change_email": (
        "[want] [change|update] my [email|email address]? [I lost the old one.|My old one got hacked.|]",
        "[hi] [the email on my account|my email] [is wrong|is old|has a typo]. [please]",
    ),
    "raise_limit": (
        (
            "[want] [raise|increase|lift] my [limit|sending limit|weekly limit]? [I have to pay rent.|"
            "It's too low for me.|]"
        ),
        "[hi] it says [I hit my limit|limit reached|I'm over the limit] [so] I [cant] send [sum]. [please]",
    ),
    "close_account": (
        "[want] [close|delete|cancel|shut down] my account[?| for good.| today.]",
        (
            "[hi] I [don't want|no longer need|don't use] [this account|Pennywren] [anymore|any more]. [Close it.|"
            "How do I delete it?|Please close it.]"
        ),
    ),
    "tax_form": (
        (
            "[Where|How] do I [find|get|download] my [tax form|tax document|1099]? [My accountant needs it.|"
            "I'm doing my taxes.|]"
        ),
        "[hi] I [need|never got|am looking for] my [tax form|1099|tax papers]. [please]",
    ),
    "bonus_missing": (
        "[hi] I [invited|referred] a friend [when] [so] [I never got the bonus|no bonus|where is my bonus]. [please]",
        "[Where is|When do I get] my [referral bonus|invite bonus|bonus]? My friend [signed up|joined] [when].",
    ),
    # answers
    "gives_amount": (
        "[sure] [it was|exactly|] {amount}[.|, I think.|]",
        "{amount}",
        "[The amount is|It says|I sent|Should be] {amount}.",
        "{amount} [in total|to be exact|plus nothing else].",
    ),
    "gives_recipient": (
        "[sure] [to|it was|it went to|] {recipient}.",
        "{recipient}",
        "[Their|The] [name|tag] is {recipient}.",
        "My [friend|cousin|roommate|brother] {recipient}.",
    ),
    "gives_date": (
        "[sure] [on|it was|] {date}.",
        "{date}",
        "[I believe|Pretty sure it was|That was] {date}.",
        "[It happened|I did it] on {date}.",
    ),
    "gives_merchant": (
        "[sure] [it's|it was|] {merchant}.",
        "{merchant}",
        "[The name is|It shows as|It says|The store is called] {merchant}.",
    ),
    "gives_card": (
        "[sure] [it ends in|last four are|] {last_four}.",
        "{last_four}",
        "[The digits are|It's|The card ends with] {last_four}.",
    ),
    "gives_email": ("[sure] [it's|my email is|] {email}", "{email}", "[Should be|Try|I use] {email}"),
    "gives_zip": ("[sure] [it's|my zip is|] {zip}.", "{zip}", "[The ZIP is|Should be|I'm in] {zip}."),
    "gives_employer": (
        "[sure] [I work at|it's from|] {employer}.",
        "{employer}",
        "[My job is with|Payroll is|It comes from] {employer}.",
    ),
    "gives_bank": ("[sure] [it's|my bank is|] {bank}.", "{bank}", "[I have|It's linked to|I use] {bank}."),
    "gives_address": (
        "[sure] [it's|the new one is|] {address}, {zip}.",
        "{address} {zip}",
        "[I live at|We are now at] {address}, ZIP {zip}.",
    ),
    "gives_closing_reason": (
        (
            "[There are too many fees.|I found another app.|I just don't use it.|I don't feel safe with it.|"
            "Your support is slow.]"
        ),
        "[I have another account now|I'm moving abroad|It's too expensive for me|No special reason].",
    ),
    # what else the customer says
    "asks_retry": (
        (
            "[Ok I added money.|I just topped it up.|Got it, I have funds now.] [How do I send it again?|"
            "Can I retry?|So do I start over?]"
        ),
        "[Can I|How do I] [try again|resend it|send it again]?",
    ),
    "has_money": (
        (
            "[But I have enough money|I have more than that in there|That's wrong, my balance is fine|"
            "No way, there's plenty in my account]."
        ),
        "My balance [shows|says] {balance} [though|so how can that be|].",
    ),
    "asks_cancel": (
        "[Can I|Can you|How do I] [cancel it|stop it|get it back|take it back] [instead|then|before it arrives|]?",
        "I [don't want to wait|changed my mind about sending it], [cancel it|stop it] please.",
    ),
    "confirmed_it": (
        (
            "[Yes it was me|I confirmed it|Done, I approved it|Ok I tapped yes]. [Now what?|What's next?|"
            "Do I send it again?|]"
        ),
    ),
    "has_receipt": (
        (
            "[I have|They gave me|I've got] [a receipt|the refund receipt|proof from them]. [Sending it now.|"
            "I attached it.|Here's a photo.]"
        ),
        "[Attached|Uploaded|Sent you] [the receipt|the proof|a screenshot of the receipt].",
    ),
    "wants_new_card": (
        "[Can I|How do I|Could I] [get a new one|order a replacement|have a new card sent]?",
        (
            "[Ok, send me a new card|I want a replacement|Please mail me another one|"
            "It's gone for good so I need a new one]."
        ),
    ),
    "may_find_it": (
        (
            "[It may still turn up|I might find it at home|Maybe it's in my car|I'll search some more]. "
            "[Can I unlock it then?|What if I find it?|]"
        ),
        "What if I [find it|find it again|get it back]?",
    ),
    "asks_faster": (
        (
            "[That's too long|Seven days|A whole week]? [Can you send it faster?|Is there express shipping?|"
            "I need it sooner.]"
        ),
        "[Can it come|Could I get it] [sooner|faster|this week]?",
    ),
    "says_yes": (
        "[Yes please|Sure|Yes, do that|Ok, sounds good|Yep|That would be great].",
        "[Yes|Ok|Fine], [let's do that|go ahead|I'll take it].",
    ),
    "says_no": (
        "[No thanks|No|Nope], [just close it|close it please|I've decided|go ahead and close it].",
        "[Not interested|I'd rather not], [please close it|close it].",
    ),
    "lost_number": (
        "I [don't have|no longer have|lost] [that number|the old number|that phone] [anymore|any more|].",
        "The code goes to [my old phone|a number I don't have|the wrong phone].",
    ),
    "reads_version_error": (
        (
            "[It says|The screen says|Something like] [this version is no longer supported|update required|"
            "version too old|please upgrade]."
        ),
    ),
    "asks_fee_instant": (
        "[Can I make it instant|Can I speed it up|What does instant cost|Is there a faster way]?",
        "How much [is|for] [the instant one|instant|the fast option]?",
    ),
    "asks_credit": (
        (
            "[Do I get my money back now|Will I get a credit|I need the money now, can you credit it|"
            "How do I pay my rent until then]?"
        ),
        "Ten days? [I need that money|Can I have a credit|What about my money until then]?",
    ),
    "never_started_verifying": (
        "I [have not started|haven't done anything yet|don't know where to begin|can't find where to do it].",
        "[Where do I start|What do I have to do|I never did it before], [it just says verify|there is only a banner].",
    ),
    "asks_numbers": (
        "[Ok where do I find the right number|What's the right account number|Where can I see my account number]?",
        "So [which number|what number] do I give [payroll|them|my boss]?",
    ),
    "no_strange_charges": (
        "[I looked and|Checked,|Just checked and] [everything is mine|nothing strange|it's all fine|no odd charges].",
        "[No charges that aren't mine|Nothing so far|All good there].",
    ),
    "found_strange_charge": (
        "[Yes there's one|I see one|There is a charge] [from|at] {merchant} for {amount}. [Not me.|That isn't mine.|]",
        "{amount} at {merchant} [was not me|isn't mine|is theirs].",
    ),
    "fee_was_instant": (
        "It was [when I cashed out|for an instant cash out|for the instant deposit|for the fast transfer to my bank].",
    ),
    "fee_was_atm": ("It was [at an ATM|when I took out cash|at a cash machine|for a withdrawal at the ATM].",),
    "fee_was_foreign": (
        "It was [on a trip abroad|for a purchase in euros|at a foreign website|when I was in Mexico].",
    ),
    "fee_was_credit_card": (
        "It was [when I paid with my credit card|for sending from my credit card|on a credit card payment].",
    ),
    "asks_fee_back": (
        "[Can I|Could I|I want to] [get it back|have that refunded|get that fee back]?",
        "[Nobody told me|I didn't know that|That's unfair]. [Can you waive it?|Please return it.|Refund it please.]",
    ),
    "was_scammed": (
        (
            "[They told me|He said|Some page said] [I'd won a prize|I would get double back|"
            "they'd rent me a flat] and [now they blocked me|then vanished]."
        ),
        "[I think I got scammed|It was a scam|They tricked me], [they asked for a code|they deleted their page].",
    ),
    "asks_how_verify": (
        "[How do I verify|How do I do that|Where do I verify]?",
        "[Ok|Fine], [where do I|how do I] [verify|start]?",
    ),
    "asks_early": ("[Does it come early|Will I get paid early|I heard it comes two days early, is that true]?",),
    "cashed_out": ("[Done, I moved it|I cashed it out|Ok it's at zero now|Just emptied it].",),
    "tax_form_wrong": ("[The form is wrong|The amount on it is wrong|My name is wrong on it|It has the wrong SSN].",),
    "wait": (
        (
            "[One sec|Hold on|Give me a minute|Let me check|Wait|Just a moment], [looking|let me find it|I'm at work|"
            "need my other phone]."
        ),
        "[Let me look|I have to look that up|Brb].",
    ),
    "changes_mind": (
        (
            "[Actually|Oh wait, actually|Never mind, actually|Hmm actually], [forget that|that's sorted|"
            "it just worked itself out|something more urgent]."
        ),
        "Actually [never mind|skip that one|that can wait].",
    ),
    "one_more": (
        "[Yes,|Yeah|Actually yes,|Oh yes,] [one more thing|another question|there's something else].",
        "One more [thing|question].",
    ),
    "asks_why": (
        "[Why do you need that|What for|Is it safe to share that|Why do you ask]?",
        "[I'd rather not say|Not sure I should share that]. [Why do you need it?|What is it for?]",
    ),
    "asks_if_person": (
        "[Are you a bot|Is this a robot|Am I talking to a person|Are you real]?",
        "[Can I talk to a human|I want a real person].",
    ),
    "upset": (
        (
            "[This is ridiculous|That's unacceptable|Are you serious|I'm so tired of this|This is not ok], "
            "[I need this fixed|I've been waiting for days|I have bills to pay]."
        ),
        (
            "[That does not help me|Not good enough|Worst service ever|So annoying]. [I rely on this money.|"
            "I might leave.|]"
        ),
    ),
    "asks_supervisor": ("[I want to speak to|Let me talk to|Get me] [a manager|your supervisor|someone in charge].",),
    "thanks": (
        "[Ok thanks|Thank you|Great, thank you|Thanks a lot|Perfect, thanks|Oh ok|Alright|Understood|Got it, thanks].",
        "[That makes sense|That helps|Good to know]. [Thank you.|Thanks.|]",
        "[Ok|Alright], I'll [do that|try that|wait then|keep an eye on it].",
    ),
    "thanks_done": (
        "[That's all I needed|That was it|All good now], [thanks|thank you|bye].",
        "[Thanks, bye|Ok thank you, have a good day|Thanks for your help, bye|Cheers, goodbye].",
    ),
    "no_more": (
        "[No|Nope|No thanks|Nah], [that's all|that's it|I'm good|all set|nothing else][.|, thank you.| thanks.]",
        "[That's everything|That is all|I'm all set][.|, thanks.|, have a good one.]",
    ),
    "small_talk": (
        "Hi {advocate}[.|, how are you?|, thanks for the quick reply.|!]",
        "[Finally someone.|Hello!|Oh good, a person.|Hope your day is better than mine.]",
    ),
    # what the advocate writes freely
    "advocate_note": (
        "[Got it|Okay|Alright|I see|Understood], [thanks for letting me know|thanks for that|that helps|makes sense].",
        (
            "[Sorry about the wait|Sorry, that took a moment|Thanks for hanging on], [I have it in front of me now|"
            "I had to open another screen|almost there]."
        ),
        "[Oh no|Ouch|Oh dear], [that's no fun|that sounds stressful|sorry you have to deal with that].",
        "[Happy to help|Glad you wrote in|Thanks for your patience], [let's see|let me see what I can do].",
    ),
    "edit_before": ("[Thanks, {name}!|Got it.|Okay!|Perfect.|All right.|I see.]",),
    "edit_after": (
        "[Let me know if that is unclear.|Hope that helps!|:)|Does that make sense?|I am here if you need me.]",
    ),
    # writing styles
    "filler": (
        (
            "[So basically,|I hope you are well.|Not sure this is the right place, but|"
            "My daughter told me to write here.|I have been a customer for years.|Sorry to bother you.|"
            "It's been a long day.|So my phone is acting up as well, but anyway,]"
        ),
    ),
    "courtesy": (
        "[Thank you so much.|Thanks in advance!|I appreciate it.|Thank you kindly.|If that is possible please.]",
    ),
    "emoji": ("[🙏|😭|😩|🙂|👍|😅|💸|🤔|😤]",),
}

ADVOCATES = ("Mara", "Tobias", "Ines", "Quentin", "Aiko", "Desmond", "Priya", "Lena", "Oscar", "Yusuf", "Wren", "Carla")

# What a case is about: one option of each is drawn per case.
FACTS: dict[str, tuple[str, ...]] = {
    "name": (
        "Alex",
        "Jordan",
        "Dana",
        "Riley",
        "Sam",
        "Noor",
        "Casey",
        "Tam",
        "Jules",
        "Robin",
        "Ana",
        "Marcus",
        "Kim",
    ),
    "recipient": ("Pat Osei", "Bea Lund", "$tomtom7", "Rico Vance", "$lilymae", "Gus Peele", "Nadia K", "$bigdee22"),
    "merchant": (
        "Corner Bean",
        "Halvor Shoes",
        "StreamNook",
        "Fitbarn",
        "Pixel Pantry",
        "GreenCab",
        "Novo Toys",
        "Bookhollow",
    ),
    "employer": (
        "Hillside Foods",
        "Tarn Logistics",
        "Brightway Care",
        "Osprey Payroll",
        "Maple Diner",
        "Kestrel Staffing",
    ),
    "bank": ("First Alder", "Northgate Credit Union", "Bank of Linden", "Harborline", "Cobalt Savings"),
    "address": ("14 Elm Row", "220 Quarry St", "7 Mill Lane Apt 3", "1801 Harbor Ave", "56 Juniper Ct"),
}
