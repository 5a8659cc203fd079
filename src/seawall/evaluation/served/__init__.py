"""A model behind a completions endpoint, compared with local weights; `seawall verify` uses it.

client.py    requests by token ids: log probabilities of given tokens, greedy replies
verdict.py   differences of log probabilities and replies, and the rule that names another model
view.py      the result as JSON, facts and lines
process.py   a vLLM server of our own: started, waited for
keeper.py    the process between: ends the server with its workers when ours ends
"""
